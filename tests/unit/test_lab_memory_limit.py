"""A memory limit of cgroup v2 on a made-up hierarchy: what it changed at the root is put back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracekit.lab.memory_limit import MemoryLimit


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the root's controllers; it holds what was written last."""
    monkeypatch.setattr("tracekit.lab.memory_limit._ROOT", tmp_path)
    path = tmp_path / "cgroup.subtree_control"
    path.write_text("cpu io\n")
    return path


def test_a_controller_that_was_handed_down_for_the_limit_is_taken_back(control: Path) -> None:
    with MemoryLimit() as limit:
        assert control.read_text() == "+memory"
        assert limit.path.is_dir()
    assert control.read_text() == "-memory"
    assert not limit.path.exists()


def test_a_controller_that_was_there_stays(control: Path) -> None:
    control.write_text("cpu memory\n")
    with MemoryLimit():
        pass
    assert control.read_text() == "cpu memory\n"
