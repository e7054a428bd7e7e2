"""docs/trace-format.md names every column, kind, flag and key there is, and its examples run."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tracekit.trace import Meta, TraceWriter, compact, events_batch
from tracekit.trace.schema import EVENTS, KINDS, LOSSES, MEMSLOTS, SAMPLES

PAGE = Path(__file__).parents[2] / "docs" / "trace-format.md"


def test_nothing_is_left_out():
    text = PAGE.read_text()
    tables = (EVENTS, MEMSLOTS, SAMPLES, LOSSES)
    names = {name for table in tables for name in table.names} | set(KINDS)
    names |= {field.name for field in fields(Meta)} - {"extra"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
    types = dict(re.findall(r"^\| `(\w+)` \| (\w+)[^|]* \| (?:yes|no) \|", text, re.MULTILINE))
    assert types == {f.name: str(f.type).split("<")[0] for f in EVENTS}
    nulls = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes|no) \|", text, re.MULTILINE))
    assert nulls == {f.name: "yes" if f.nullable else "no" for f in EVENTS}


@pytest.mark.parametrize("number", range(4))
def test_the_examples_run(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with TraceWriter("x.trace", Meta()) as writer:
        writer.append(events_batch(ts_ns=[1, 2, 3], kind="ept_violation", vcpu=0, latency_ns=[5, 6, 7]))
    compact("x.trace", "small.trace")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 4
    scope: dict[str, object] = {}
    if number == 2:
        exec(examples[0], scope)  # it goes on with the first one's import
    exec(compile(examples[number], f"{PAGE}#{number}", "exec"), scope)
    if number != 2:
        assert scope["events"] is not None
