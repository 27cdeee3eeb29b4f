"""Which headers travel: what ends at a connection, what is ours, and our own keys do not."""

import base64

import pytest

from gateway.headers import end_to_end, forwarded, holds_own_key, without_account
from gateway.settings import AccessSettings


def test_what_ends_at_each_connection_does_not_travel() -> None:
    """Hop-by-hop headers, those Connection names, and ours; in a request also what was for us."""
    given = [
        (b"connection", b"close, X-Own"),
        (b"x-own", b"1"),
        (b"upgrade", b"h2c"),
        (b"x-tracer-lane", b"a"),
        (b"host", b"here"),
        (b"expect", b"100-continue"),
        (b"a", b"b"),
    ]
    assert end_to_end(given) == [(b"host", b"here"), (b"expect", b"100-continue"), (b"a", b"b")]
    assert forwarded(given) == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer trc_abc"),
        (b"authorization", b"trc_abc"),
        (b"authorization", b"bearer\ttrc_abc"),
        (b"authorization", b"Basic " + base64.b64encode(b"user:trc_abc")),
        (b"authorization", b"Basic " + base64.b64encode(b"trc_abc:")),
        (b"authorization", b'Custom key="trc_abc"'),
        (b"x-api-key", b"trc_abc"),
        (b"api-key", b" trc_abc"),
    ],
)
def test_a_key_of_ours_does_not_travel(name: bytes, value: bytes) -> None:
    """However it is written."""
    assert forwarded([(name, value), (b"a", b"b")]) == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer sk-trc_abc"),
        (b"authorization", b"Basic not base64"),
        (b"authorization", b"Basic " + base64.b64encode(b"user:sk-abc")),
        (b"x-note", b"trc_abc"),
    ],
)
def test_every_other_key_does(name: bytes, value: bytes) -> None:
    """Those letters inside a provider's key are no key of ours."""
    assert not holds_own_key(name, value)


def test_an_account_is_its_providers_business() -> None:
    """Keys, cookies and organisations stay; the rest goes on."""
    given = [(b"authorization", b"x"), (b"cookie", b"y"), (b"openai-organization", b"z"), (b"accept", b"*/*")]
    assert without_account(given) == [(b"accept", b"*/*")]


KEY = b"trc_0123456789ab_secret"


@pytest.mark.parametrize("value", [KEY, b"Token " + KEY, b"k=" + KEY + b"; a=b", b"Basic " + base64.b64encode(KEY)])
@pytest.mark.parametrize("name", [b"x-goog-api-key", b"x-anything", b"cookie"])
def test_a_whole_key_of_ours_does_not_travel_under_any_name(name: bytes, value: bytes) -> None:
    """Nobody knows all the headers in which clients put keys."""
    assert forwarded([(name, value), (b"a", b"b")]) == [(b"a", b"b")]


def test_the_settings_add_to_what_makes_an_account() -> None:
    """What is always one stays one."""
    account = AccessSettings(key_headers=("X-Theirs",)).account_headers
    given = [(b"x-theirs", b"1"), (b"x-goog-api-key", b"2"), (b"authorization", b"3"), (b"accept", b"4")]
    assert without_account(given, account) == [(b"accept", b"4")]
