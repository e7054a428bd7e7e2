"""The command line's frame: help is quick, errors are printed once with their exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("polars", "pyarrow", "numba", "scipy", "altair", "numpy")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tracekit", *args], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nimport tracekit.cli\n"
        "try:\n    sys.argv = ['tracekit', '--help']\n    tracekit.cli.main()\n"
        f"except SystemExit:\n    pass\nprint([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]", done.stderr
    for command in ("info", "record", "replay"):
        assert command in done.stdout


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    assert run("--version").stdout.strip() == f"tracekit {version('tracekit')}"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["frobnicate"], 2, "No such command"),
        (["info", "/nonexistent/x.trace"], 2, "/nonexistent/x.trace"),
        (["info"], 2, "Missing argument"),
    ],
)
def test_bad_input_has_its_exit_code_and_no_traceback(args: list[str], code: int, words: str) -> None:
    done = run(*args)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert words in done.stderr.replace("\n", " ")
