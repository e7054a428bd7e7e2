"""Fixtures of more than one test file: traces that were cut short."""

import os
import shutil

import pyarrow as pa
import pytest

from tests.unit.torn_traces import FRAMES, rows, write_frames


@pytest.fixture
def no_sync(monkeypatch):
    """Durability is not what these tests look at, and thousands of syncs take a minute."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)


@pytest.fixture
def killed(tmp_path):
    """A trace whose writer vanished after three flushes: (path, sizes of the part, its rows)."""
    path = tmp_path / "killed.trace"
    writer, sizes = write_frames(path)
    copy = tmp_path / "copy.trace"
    shutil.copytree(path, copy)
    writer.abort()
    truth = pa.concat_batches([rows(frame * 100) for frame in range(FRAMES)])
    return copy, sizes, truth
