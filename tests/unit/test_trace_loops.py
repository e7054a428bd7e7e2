"""Loops as machine code: the same bytes as numpy's, from a cache that is only trusted where it may be."""

import os
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.trace import crc_loops, loops, row_loops
from tracekit.trace.framing import seal
from tracekit.trace.loops import plain, quicken
from tracekit.trace.zstd_rows import compress_rows


@pytest.fixture(scope="module", autouse=True)
def _ready():
    assert quicken(build_first=True)
    assert row_loops.edges.compiled is not None


def column(rng, rows):
    """Numbers that change in some bytes, mostly; steadily, or not."""
    values = rng.integers(0, 1 << int(8 * rng.integers(0, 6) + 1), rows, np.uint64)
    values <<= np.uint64(8 * rng.integers(0, 3))
    if rng.random() < 0.6:
        values = np.cumsum(values)
    if rng.random() < 0.3:
        values = np.arange(rows, dtype=np.uint64) * np.uint64(rng.choice([1, 512, 4096]))
    for _ in range(rng.integers(0, 4)):
        values[rng.integers(0, rows) :] += np.uint64(1 << int(rng.integers(0, 50)))
    return values


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.sampled_from([64, 65, 300, 2048, 20_000]), most=st.integers(1, 5))
def test_a_frame_is_the_same_byte_for_byte(seed, rows, most):
    values = column(np.random.default_rng(seed), rows)
    frame = compress_rows(values, most)
    with plain():
        assert compress_rows(values, most) == frame
    if frame is not None:
        assert pa.Codec("zstd").decompress(frame, values.nbytes).to_pybytes() == values.tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_a_loop_does_as_machine_code_what_it_does_as_python(width):
    values = column(np.random.default_rng(width), 300)
    runs = np.array([[100, 101, min(width + 2, 6)]], np.int64)
    made, expected = np.empty(2000, np.uint8), np.empty(2000, np.uint8)
    size = row_loops.blocks.compiled(values, 1, 299, 1, 1 + width, runs, 1, made)
    with np.errstate(over="ignore"):
        assert row_loops.blocks.function(values, 1, 299, 1, 1 + width, runs.ravel(), 1, expected) == size
    assert made[:size].tolist() == expected[:size].tolist()


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**10))
def test_the_checksum_of_two_pieces_is_joined_as_zlib_has_it(first, second, repeated):
    for behind in (second, second * repeated):
        whole = zlib.crc32(behind, zlib.crc32(first))
        assert crc_loops.joined.compiled(zlib.crc32(first), zlib.crc32(behind), len(behind)) == whole


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_a_frame_is_sealed_the_same(content, before):
    by_loop = bytearray(b"head crc32:00000000" + content)
    by_zlib = bytearray(by_loop)
    crc = seal(by_loop, before)
    with plain():
        assert seal(by_zlib, before) == crc == zlib.crc32(by_zlib, before)
    assert by_loop == by_zlib


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """As a new process, with the cache of this one in another place."""
    import llvmlite.binding as llvm

    name = loops._file_name(llvm)
    content = next(
        path for path in (folder / name for folder in loops._folders()) if path.is_file()
    ).read_bytes()
    (tmp_path / name).write_bytes(content)
    state = loops._State()
    state.loops = {one: loops.Loop(old.function, "void", ()) for one, old in loops._state.loops.items()}
    monkeypatch.setattr(loops, "_state", state)
    monkeypatch.setattr(loops, "_folders", lambda: [tmp_path])
    return llvm, tmp_path / name


def test_the_cache_is_loaded_whole_or_not_at_all(elsewhere):
    llvm, path = elsewhere
    assert loops._load(llvm)
    content = path.read_bytes()
    head, _, body = content.partition(b"\n")
    for damaged in (content[:-1], head[:-5] + b"\n" + body, head + b"\n" + b"\0" + body[1:], b"{}\n", b""):
        path.write_bytes(damaged)
        assert not loops._load(llvm)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_code_that_somebody_else_could_have_written_is_not_run(elsewhere):
    llvm, path = elsewhere
    os.chown(path, 65_534, -1)
    assert not loops._load(llvm)
    os.chown(path, 0, -1)
    path.chmod(0o666)
    assert not loops._load(llvm)


def test_what_can_raise_or_calls_others_is_no_loop():
    import llvmlite.binding as llvm

    def divides(values, count):
        if count < 0:
            raise ValueError("less than none")

    one = loops.Loop(divides, "void", ("uint64*", "int64"))
    with pytest.raises(ValueError, match="more than a loop"):
        one.build(loops._machine(llvm))


def test_other_compiled_code_may_still_raise_errors() -> None:
    """What numba's code calls for an error is the whole process's: a replay after a recording needs it."""
    code = """
import numba
import tracekit.probes.record_loops
from tracekit.trace import loops
assert loops.quicken(build_first=True)
@numba.njit
def refuse(x):
    if x > 3:
        raise ValueError("too large")
    return x
try:
    refuse(5)
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout.strip()) == (0, "too large"), done.stderr
