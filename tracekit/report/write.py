"""From a path to a report on disk: opens the trace or result, draws, writes page and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tracekit.errors import FailedError, UsageError
from tracekit.report.figure import Figure, save_figures
from tracekit.report.figures import draw
from tracekit.report.ledger import headline, scenarios
from tracekit.report.page import render
from tracekit.report.study import Study, open_study
from tracekit.report.text import plain
from tracekit.report.units import human
from tracekit.trace.whole_file import write_file

__all__ = ["Written", "write_report"]

_SUFFIXES: Final = (".trace", ".json")


@dataclass(frozen=True)
class Written:
    """What a report wrote: the page, its size in bytes, the pictures, and what it says."""

    page: Path
    size_bytes: int
    pictures: list[Path]
    study: Study
    figures: list[Figure]

    def words(self) -> list[str]:
        """Return what was written and each scenario's headline, a line each."""
        lines = [f"{plain(self.page)}: {human(self.size_bytes, 'bytes')}, {len(self.figures)} charts"]
        if self.pictures:
            lines.append(f"{plain(self.pictures[0].parent)}: {len(self.pictures)} pictures")
        if self.study.rows is not None:
            for scenario in scenarios(self.study.rows):
                if entry := headline(self.study.rows, scenario):
                    lines.append(f"{plain(scenario)}: {plain(entry.sentence())}")
        return lines

    def facts(self) -> dict[str, Any]:
        """Return the same as values for JSON."""
        rows = self.study.rows
        return {
            "page": str(self.page),
            "bytes": self.size_bytes,
            "pictures": [str(path) for path in self.pictures],
            "charts": [{"name": f.name, "title": f.title, "says": f.says} for f in self.figures],
            "rows": [] if rows is None else rows.to_dicts(),
        }


def write_report(
    source: Path,
    scenarios: Sequence[str] | None = None,
    *,
    replay: bool = True,
    output: Path | None = None,
    figures_to: Path | None = None,
    mode: str = "light",
    force: bool = False,
) -> Written:
    """Write the report of a trace or result.

    `output` defaults to the source's name with .html in the current folder; `figures_to` also gets each
    chart as SVG and PNG, drawn for a `mode` (light or dark) ground. Raises UsageError when the page exists
    (unless `force`) or the source is neither trace nor result, FailedError when the disk refuses.
    """
    page = output or Path(f"{_stem(source)}.html")
    if not force and os.path.lexists(page):
        raise UsageError(f"{plain(page)} exists", hint=f"tracekit report {plain(source)} -o {plain(page)} -f")
    study = open_study(source, scenarios, replay=replay)
    figures = draw(study)
    text = render(study, figures).encode()
    write_file(page, text, force=force)
    try:
        pictures = [] if figures_to is None else save_figures(figures, figures_to, mode=mode)
    except OSError as error:
        raise FailedError(
            f"cannot write to {plain(figures_to)}: {error.strerror}", hint="--figures DIR"
        ) from error
    return Written(page, len(text), pictures, study, figures)


def _stem(source: Path) -> str:
    name = source.absolute().name
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name) or "report"
