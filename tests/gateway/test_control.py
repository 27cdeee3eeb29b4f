"""The x-tracer request headers."""

import pytest

from gateway.control import Control, Mode, read_control
from gateway.errors import InvalidRequest


def _read(**given: str) -> Control:
    pairs = [(f"x-tracer-{name.replace('_', '-')}".encode(), value.encode()) for name, value in given.items()]
    headers = [(b"accept", b"*/*"), *pairs]
    return read_control(headers, dict(headers))


def test_a_call_that_asks_for_nothing_gets_the_defaults() -> None:
    """No project, no mode, no agreement of its own."""
    assert _read() == Control()


def test_every_header_is_read() -> None:
    """Whatever their case."""
    found = _read(project="bank", mode="Shadow", min_agreement="0.97", explain="true")
    assert found == Control("bank", Mode.SHADOW, 0.97, True)


@pytest.mark.parametrize(
    "headers",
    [{"mode": "fast"}, {"min_agreement": "97"}, {"min_agreement": "nan"}, {"min_agreement": "0"}, {"explain": "maybe"}],
)
def test_a_value_that_means_nothing_is_refused_by_name(headers: dict[str, str]) -> None:
    """Rather than taken for another."""
    with pytest.raises(InvalidRequest) as refused:
        _read(**headers)
    assert refused.value.param == f"x-tracer-{next(iter(headers)).replace('_', '-')}"


def test_a_header_given_twice_is_refused() -> None:
    """Which of them counts would be a guess."""
    twice = [(b"x-tracer-mode", b"teacher"), (b"x-tracer-mode", b"local")]
    with pytest.raises(InvalidRequest):
        read_control(twice, dict(twice))
