"""A short run of requests that nobody should send. `make fuzz` makes the long one."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fidelity.fuzzing import Range, open_files
from tests.fidelity.shots import Shot, shots
from tests.fidelity.world import World
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway

REQUESTS = 1_500
_WARM_UP = 100


@pytest.fixture(scope="module")
def target(gateway: ThreadedGateway, openai_teacher: ScriptedTeacher) -> Iterator[Range]:
    """Fires at the gateway of the suite."""
    made = Range(gateway.url, openai_teacher)
    yield made
    made.close()


def _fire(target: Range, world: World, number: int) -> None:
    @settings(
        max_examples=number,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(shots(world))
    def fire(shot: Shot) -> None:
        target.fire(shot)

    fire()


def test_nothing_that_is_sent_breaks_the_gateway(target: Range, world: World, gateway: ThreadedGateway) -> None:
    """No 5xx of ours, no fault caught at a border, no hang, no task and no connection left behind."""
    _fire(target, world, _WARM_UP)
    files, tasks, faults = open_files(), gateway.tasks(), target.internal_errors()
    _fire(target, world, REQUESTS)
    assert target.fired > REQUESTS
    assert target.internal_errors() == faults
    assert {"none", "handled", "deferred"} <= set(target.decisions)
    assert {200, 400, 404} <= set(target.statuses)
    deadline = time.monotonic() + 10
    while (gateway.tasks() > tasks or open_files() > files) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gateway.tasks() <= tasks
    assert open_files() <= files
