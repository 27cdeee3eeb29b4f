"""What each of several workers gets of the whole gateway's limits."""

from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.settings import Settings, build_settings
from gateway.shares import check_shares, share


def _settings(**server: Any) -> Settings:
    upstreams = {"a": {"base_url": "http://localhost:1/v1", "max_connections": 10}}
    return build_settings({"server": server, "store": {"queue_size": 2}, "upstreams": upstreams}, {})


def test_the_parts_add_up_to_the_whole() -> None:
    """Every limit is divided as evenly as whole numbers can be; a queue of traces has one place at least."""
    settings = _settings(workers=4, max_concurrency=9, max_queue=3)
    check_shares(settings)
    parts = [share(settings, worker) for worker in range(4)]
    assert [part.server.max_concurrency for part in parts] == [3, 2, 2, 2]
    assert [part.server.max_queue for part in parts] == [1, 1, 1, 0]
    assert [part.upstreams["a"].max_connections for part in parts] == [3, 3, 2, 2]
    assert [part.store.queue_size for part in parts] == [1, 1, 1, 1]


def test_one_worker_has_everything() -> None:
    """Its settings are the gateway's."""
    settings = _settings()
    assert share(settings, 0) == settings


@pytest.mark.parametrize(
    ("server", "key"),
    [
        ({"workers": 8, "max_concurrency": 7}, "server.max_concurrency"),
        ({"workers": 11}, "upstreams.a.max_connections"),
    ],
)
def test_a_limit_that_does_not_reach_for_all_is_refused(server: dict[str, int], key: str) -> None:
    """With its key: a worker without a place would hold its calls for ever."""
    with pytest.raises(SettingsError, match=key):
        check_shares(_settings(**server))
