"""`tracekit datasets` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tracekit.datasets.synthetic import GENERATORS
from tracekit.trace import open_trace


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracekit", "datasets", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
    )


def test_list_names_every_dataset() -> None:
    done = run("list", "--json")
    names = [row["name"] for row in json.loads(done.stdout)]
    assert [name for name in names if name.startswith("synthetic:")] == [f"synthetic:{n}" for n in GENERATORS]
    table = run("list")
    assert all(name in table.stdout for name in names)
    assert max(len(line) for line in table.stdout.splitlines()) <= 80
    assert "next: tracekit datasets show" in table.stderr


def test_show_explains_the_parameters() -> None:
    shown = json.loads(run("show", "synthetic:scan", "--json").stdout)
    assert {"events", "seed", "pages", "limit"} <= {p["name"] for p in shown["parameters"]}
    assert "LRU" in run("show", "synthetic:scan").stdout


def test_make_generates_what_was_asked_and_refuses_to_overwrite(tmp_path: Path) -> None:
    args = ("make", "synthetic:scan", "pages=50", "limit=20", "--events", "1e3", "--seed", "3", "--json")
    done = run(*args, cwd=tmp_path)
    made = json.loads(done.stdout)
    trace = open_trace(tmp_path / made["path"])
    assert made == {
        "name": "synthetic:scan",
        "path": "scan.trace",
        "source": "synthetic",
        "events": trace.rows,
    }
    assert trace.meta.extra["truth"]["parameters"]["pages"] == 50
    assert trace.meta.extra["truth"]["rows"]["ept_violation"] == 1000
    again = run(*args, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert run(*args, "-f", cwd=tmp_path).returncode == 0


def test_wrong_names_and_values_exit_2_with_a_hint(tmp_path: Path) -> None:
    for args, words in (
        (("make", "synthetic:scn"), "synthetic:scan"),
        (("make", "synthetic:scan", "page=3"), "pages=..."),
        (("make", "synthetic:scan", "pages"), "pages=VALUE"),
        (("make", "nothing-like-it"), "tracekit datasets list"),
        (("show", "nothing-like-it"), "tracekit datasets list"),
        (("fetch-path", "nothing-like-it"), "tracekit datasets list"),
    ):
        done = run(*args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
