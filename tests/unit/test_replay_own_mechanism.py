"""A mechanism of the user's own: the example of docs/model.md, as it stands there."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from tests.unit.replay_kit import Tiny, fault, metrics

DOCS = Path(__file__).parents[2] / "docs" / "model.md"


def test_the_example_in_the_docs_runs_and_says_what_the_hand_says() -> None:
    text = DOCS.read_text().partition("## A mechanism of your own")[2].partition("## Shown")[0]
    code = textwrap.dedent(
        "\n".join(line for line in text.splitlines() if line.startswith("    ") or not line)
    )
    # First touches of 9, 2 and 5 us, and a second fault of 8 us on page 1, which is no first touch.
    rows = [fault(20, 1, 9), fault(40, 2, 2), fault(60, 3, 5, write=False), fault(80, 1, 8, present=True)]
    seen: dict[str, Any] = {"trace": Tiny(rows)}
    exec(code, seen)
    # At most 3 us: 6 + 0 + 2 us saved.
    result = type("Found", (), {"rows": seen["rows"]})
    alone = metrics(result, "capped,us=3")  # type: ignore[arg-type]
    assert (alone["stall"]["saved"], alone["stall"]["label"]) == (8_000, "assumed")
    assert alone["faults"]["saved"] == 0
    # With zeroing (5 us at most): the writes are spared before, the read of 5 us stays.
    both = metrics(result, "capped+zeroing")  # type: ignore[arg-type]
    assert both["stall"]["saved"] == 11_000
    assert both["stall"]["baseline"] == 24_000
