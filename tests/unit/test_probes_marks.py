"""Marks: what goes into the pipe comes out as a name and a time; what is no mark does not."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tracekit.cli.app import app
from tracekit.errors import UsageError
from tracekit.probes.marks import ENVIRONMENT, MarkPipe, pipe_of, put_mark, put_mark_if_recorded
from tracekit.trace import Meta, TraceWriter


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "vm.trace"


def test_marks_come_out_with_the_time_they_were_put(trace: Path):
    with MarkPipe(pipe_of(trace)) as pipe:
        assert list(pipe.read()) == []
        before = time.monotonic_ns()
        put_mark("boot.start", trace)
        put_mark("ready", trace)
        after = time.monotonic_ns()
        (first, t0), (second, t1) = pipe.read()
        assert (first, second) == ("boot.start", "ready")
        assert before <= t0 <= t1 <= after
        assert stat.S_IMODE(pipe_of(trace).stat().st_mode) == 0o600
    assert not pipe_of(trace).exists()


def test_a_recorded_command_knows_where_marks_go(trace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    put_mark_if_recorded("ready")  # nobody records: nothing to do
    with pytest.raises(UsageError, match="no recording"):
        put_mark("ready")
    monkeypatch.setenv(ENVIRONMENT, str(pipe_of(trace)))
    with MarkPipe(pipe_of(trace)) as pipe:
        put_mark_if_recorded("ready")
        assert [name for name, _ in pipe.read()] == ["ready"]


@pytest.mark.parametrize("name", ["", "1st", "two words", "a\nb", "a" * 65, "\x1b[31m"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(trace: Path, name: str):
    with MarkPipe(pipe_of(trace)) as pipe:
        with pytest.raises(UsageError, match="no name"):
            put_mark(name, trace)
        assert list(pipe.read()) == []


def test_what_is_no_mark_is_left_out_and_the_future_is_now(trace: Path):
    with MarkPipe(pipe_of(trace)) as pipe:
        fd = os.open(pipe_of(trace), os.O_WRONLY)
        os.write(fd, b"junk\n-5 ready\n5 \x1b[31m\n\xff\xff\n7 half")
        assert list(pipe.read()) == []
        os.write(fd, b" \n99999999999999999999 late\n7 early\n")
        os.close(fd)
        (late, now), early = pipe.read()
        assert late == "late"
        assert now <= time.monotonic_ns()
        assert early == ("early", 7)


def test_a_pipe_that_was_left_is_replaced_and_anything_else_is_not(trace: Path):
    os.mkfifo(pipe_of(trace))
    with MarkPipe(pipe_of(trace)):
        pass
    pipe_of(trace).write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        MarkPipe(pipe_of(trace))
    with pytest.raises(UsageError, match="pipe"):
        put_mark("ready", trace)
    assert pipe_of(trace).read_text() == "mine"


@pytest.mark.parametrize("refuses", ["mkfifo", "chown"])
def test_a_file_system_without_pipes_only_takes_the_marks(
    trace: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # what FAT answers

    monkeypatch.setattr(os, refuses, refused)
    with MarkPipe(pipe_of(trace), owner=(0, 0)) as pipe:
        assert pipe.off == "marks are off: no pipe can be made beside the trace (Operation not permitted)"
        assert not pipe_of(trace).exists()
        assert list(pipe.read()) == []
        with pytest.raises(UsageError, match="no recording takes marks"):
            put_mark("ready", trace)


def test_recovering_removes_the_pipe_of_a_killed_recorder_and_no_other(trace: Path):
    with TraceWriter(trace, Meta()):
        pass
    with MarkPipe(pipe_of(trace)):
        assert CliRunner().invoke(app, ["recover", str(trace)]).exit_code == 0
        put_mark("ready", trace)
    os.mkfifo(pipe_of(trace))
    assert CliRunner().invoke(app, ["recover", str(trace)]).exit_code == 0
    assert not pipe_of(trace).exists()
    pipe_of(trace).write_text("mine")
    assert CliRunner().invoke(app, ["recover", str(trace)]).exit_code == 0
    assert pipe_of(trace).read_text() == "mine"


def test_nobody_listens(trace: Path):
    os.mkfifo(pipe_of(trace))
    with pytest.raises(UsageError, match="no recording takes marks"):
        put_mark("ready", trace)
