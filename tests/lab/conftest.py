"""One lab host for each kernel, for all tests that want it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.nested import Lab
from tracekit.errors import CapabilityError
from tracekit.lab.host.machine import KERNELS, HostMachine, HostPlan


@pytest.fixture(scope="session", params=list(KERNELS))
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    plan = HostPlan(kernel=request.param, swap_bytes=1 << 30)  # one CPU: see docs/lab.md
    try:
        machine = HostMachine(plan, say=print)
    except CapabilityError as error:
        pytest.skip(f"the lab host can't be made: {error} ({error.hint})")
    with machine:
        yield Lab(machine, request.param, tmp_path_factory.mktemp("lab"))
