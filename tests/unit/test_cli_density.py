"""`tracekit density`: the table, JSON, and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from tracekit.cli import main


@dataclass
class Done:
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run one command line in this process: polars and scipy are imported once."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")

    def one(*args: str | Path) -> Done:
        monkeypatch.setattr("sys.argv", ["tracekit", "density", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, *capsys.readouterr())

    return one


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten VMs of 10 GiB; `half` halves them. Class a: the first five."""
    rows = [
        {
            "trace": f"vm{i}",
            "vm_class": "ab"[i // 5],
            "scenario": name,
            "ts_ns": t,
            "resident_bytes": size * 2**30,
        }
        for i in range(10)
        for name, size in (("baseline", 10), ("half", 5))
        for t in (0, 10**9)
    ]
    path = tmp_path_factory.mktemp("curves") / "curves.parquet"
    pl.DataFrame(rows).write_parquet(path)
    return path


def test_the_table_fits_80_columns_and_says_how_many_fit(curves: Path, run: Callable[..., Done]) -> None:
    money = ("--vms", "1000", "--host-cost", "9000")
    done = run(
        curves, "--host-memory", "768G", "--reserve", "68G", *money, "--risk", "0.01", "--moments", "2000"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("VMs per host with 700 GiB")
    (half,) = [line.split() for line in lines if line.startswith("half") and "=" in line]
    assert half[1:5] == ["140", "[140,", "140]", "+70"]
    assert half[-5:] == ["7", "of", "15", "=", "63,000"]  # 1000 / 70 and 1000 / 140, rounded up
    assert "next: tracekit density" in done.stderr


def test_json_has_one_answer_per_class(curves: Path, run: Callable[..., Done]) -> None:
    done = run(curves, "--host-memory", "100G", "--by-class", "--json", "--moments", "500")
    answers = json.loads(done.stdout)
    assert [one["vm_class"] for one in answers] == ["a", "b"]
    assert [fit["vms"] for fit in answers[0]["fits"]] == [10, 20]
    assert answers[0]["fits"][0]["interval"]["low"] is None  # five VMs say too little


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["none.parquet", "--host-memory", "1G"], "cannot read none.parquet"),
        (["--host-memory", "lots"], "is not a size"),
        (["--host-memory", "1G", "--risk", "2"], "between 0 and 1"),
        (["--host-memory", "1G", "--reserve", "2G"], "all of its memory"),
    ],
)
def test_bad_input_is_a_usage_error(
    args: list[str], words: str, curves: Path, run: Callable[..., Done]
) -> None:
    done = run(*([] if args[0].endswith("parquet") else [curves]), *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
