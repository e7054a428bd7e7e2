"""A recording of several runs, cut into a trace of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracekit.errors import CapabilityError, FailedError
from tracekit.lab.validate.case import Run
from tracekit.lab.validate.session import Session, cut, run_unrecorded
from tracekit.trace import Meta, TraceWriter, open_trace
from tracekit.trace.batch import events_batch


def test_each_run_has_its_own_events_and_its_vm_is_the_first(tmp_path: Path) -> None:
    meta = Meta(
        source="recorded", vms=[{"pid": 11}, {"pid": 12}, {"pid": 13}], start_ns=100, stop_ns=900, notes=["n"]
    )
    with TraceWriter(tmp_path / "whole.trace", meta) as writer:
        for vm, ts_ns in ((0, (200, 210)), (2, (400, 410, 420)), (1, (405,))):
            writer.append(events_batch(ts_ns=list(ts_ns), kind="ept_violation", gfn=7, vm=vm, latency_ns=5))
            writer.add_memslot(
                vm=vm, slot=0, gpa=0, size_bytes=4096, hva=1 << 20, from_ns=ts_ns[0] - 5, known_by="ioctl"
            )
            writer.add_sample(ts_ns[0], vm, "rss_bytes", 4096.0)
        writer.add_loss(cpu=0, t0_ns=300, t1_ns=350, lost=3, reason="ring full")
        writer.add_loss(cpu=0, t0_ns=350, t1_ns=400, lost=4, reason="ring full")
    whole = open_trace(tmp_path / "whole.trace")
    first = cut(whole, tmp_path / "first.trace", 150, 299)
    assert first.events.collect().select("ts_ns", "vm", "gfn").rows() == [(200, 0, 7), (210, 0, 7)]
    assert (first.meta.vms, first.meta.start_ns, first.meta.stop_ns) == ([{"pid": 11}], 150, 299)
    assert (first.lost, first.meta.notes) == (0, ["n"])
    second = cut(whole, tmp_path / "second.trace", 400, 450)
    # Two VMs, of which the first had the number 1 before.
    assert second.events.collect().select("ts_ns", "vm").rows() == [(400, 1), (405, 0), (410, 1), (420, 1)]
    assert [vm["pid"] for vm in second.meta.vms] == [12, 13]
    assert sorted(second.memslots["vm"].to_list()) == [0, 1]
    assert sorted(second.samples.select("ts_ns", "vm").rows()) == [(400, 1), (405, 0)]
    assert second.lost == 4
    assert open_trace(tmp_path / "whole.trace").meta.vms == meta.vms


def test_a_recording_that_can_not_begin_says_so_at_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(plan: object) -> None:
        raise CapabilityError("no bcc here", hint="install it")

    monkeypatch.setattr("tracekit.lab.validate.session.record", refuses)
    with pytest.raises(CapabilityError, match="no bcc"), Session(tmp_path) as session:
        session.run(Run(("lab", "guest")), "one")
    assert not list(Path(tmp_path).glob("*.trace"))


def test_an_unrecorded_run_leaves_what_it_said_and_tells_why_it_failed(tmp_path: Path) -> None:
    run_unrecorded(Run(("datasets", "list")), "one", tmp_path)
    assert (tmp_path / "one.json").read_text().startswith(("[", "{"))
    with pytest.raises(FailedError, match=r"ended with 2: .*no-such"):
        run_unrecorded(Run(("info", "no-such.trace")), "wrong", tmp_path)


@pytest.mark.live("kvm", "bpf", "root")
def test_runs_of_one_recording_are_traces_of_their_own(tmp_path: Path) -> None:
    guest = Run(("lab", "guest", "--pages", "101"))
    with Session(tmp_path) as session:
        session.run(guest, "one")
        with pytest.raises(FailedError, match="ended with 2"):
            session.run(guest.plus("--no-such-option"), "wrong")
        session.run(guest.plus("--passes", "2"), "two")
        traces = session.close()
    assert sorted(traces) == ["one", "two"]
    for trace in traces.values():
        assert trace.lost == 0
        assert len(trace.meta.vms) == 1
        gfns = trace.events.collect().filter(kind="ept_violation", vm=0)["gfn"]
        assert gfns.filter(gfns >= 512).n_unique() == 101
