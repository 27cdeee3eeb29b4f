"""Where two sequences of tokens differ."""

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.prompt_gaps import gaps

_TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", ".", "\x00date"]), max_size=30)


@given(_TOKENS, _TOKENS)
def test_outside_the_gaps_both_are_equal(a: list[str], b: list[str]) -> None:
    """And the gaps are in order, none of them empty."""
    at_a, at_b = 0, 0
    for a0, a1, b0, b1 in [*gaps(a, b), (len(a), len(a), len(b), len(b))]:
        assert a[at_a:a0] == b[at_b:b0]
        assert at_a <= a0 <= a1
        assert at_b <= b0 <= b1
        at_a, at_b = a1, b1
    assert all(a0 < a1 or b0 < b1 for a0, a1, b0, b1 in gaps(a, b))


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        ("you help Bob today", "you help Bob today", []),
        ("you help Bob today", "you help Mary today", [(2, 3, 2, 3)]),
        ("you help Bob today", "you help Mary Ann today", [(2, 3, 2, 4)]),
        ("you help Bob of Acme today", "you help Mary of Beta today", [(2, 3, 2, 3), (4, 5, 4, 5)]),
        ("you help Bob", "you do not help Bob", [(1, 1, 1, 3)]),
        ("Bob", "", [(0, 1, 0, 0)]),
    ],
)
def test_gaps_are_as_short_as_can_be(a: str, b: str, found: list[tuple[int, int, int, int]]) -> None:
    """Words that stand once in both hold the rest together."""
    assert gaps(a.split(), b.split()) == found


def test_long_sequences_take_no_long_time() -> None:
    """However alike and however repetitive they are."""
    words = [f"w{i}" for i in range(8_000)]
    started = process_time()
    gaps(words, words[::-1])
    gaps(["a", "b"] * 4_000, ["b", "c", "a"] * 3_000)
    gaps([w for i, w in enumerate(words) if i % 3], [w for i, w in enumerate(words) if i % 7])
    assert process_time() - started < 5
