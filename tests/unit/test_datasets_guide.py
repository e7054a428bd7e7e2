"""The guide's scripts: short, and each answers its question on a bundled real trace."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
ANSWERS = {
    "zeroing_twice.py": r"vm 0: 0 to 256 MiB zeroed by host and guest \(bounded\)",
    "hints_that_pay.py": r"prealloc,via=pre_fault +saves +[\d,.]+ ms = 100\.0 %",
    "balloon_lag.py": r"balloon_inflate +16,384 calls +64 MiB",
    "boot_waits.py": r"host_fault +[\d,]+ x, +[\d.]+ ms in all",
    "alike_boots.py": r"in both: Jaccard 0\.\d\d",
}


def test_every_script_of_the_guide_has_an_answer_to_give() -> None:
    assert {path.name for path in GUIDE.glob("*.py")} == set(ANSWERS)


@pytest.mark.parametrize("name", ANSWERS)
def test_a_guide_script_is_short_and_answers(name: str, tmp_path: Path) -> None:
    script = GUIDE / name
    assert len(script.read_text().splitlines()) < 30
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(ANSWERS[name], done.stdout), done.stdout
