"""The draw: the same for a retry, unforeseeable without the key, and as often as it says."""

import math
import subprocess
import sys

import numpy as np
import pytest

from gateway.draw import Draw, Seen, share
from tests.serving import ROOT

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0  # the beginning of a minute


def _shares(key: bytes, calls: int = 20_000) -> np.ndarray:
    draw = Draw(key)
    return np.array([share(draw.id("bank", "f" * 16, f"where is card {n}", NOW)) for n in range(calls)])


def test_a_retry_has_the_id_of_its_call() -> None:
    """Within the minute, and whatever white space there is in it."""
    draw = Draw(KEY)
    first = draw.id("bank", "abc", "where is my card", NOW)
    assert draw.id("bank", "abc", "where is my card", NOW + 59.9) == first
    assert draw.id("bank", "abc", "  where is\n my card ", NOW) == first
    assert len(first) == 32


def test_other_calls_have_other_ids() -> None:
    """Another project, prompt, text or minute, or the same characters cut elsewhere."""
    draw = Draw(KEY)
    calls = [("bank", "abc", "text", NOW), ("shop", "abc", "text", NOW), ("bank", "abd", "text", NOW)]
    calls += [("bank", "abc", "Text", NOW), ("bank", "abc", "text", NOW + 60), ("banka", "bc", "text", NOW)]
    assert len({draw.id(*call) for call in calls}) == len(calls)


def test_every_process_draws_alike() -> None:
    """With one key; Python's own hashes would differ."""
    code = f"from gateway.draw import Draw; print(Draw({KEY!r}).id('bank', 'abc', 'text', {NOW}))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == Draw(KEY).id("bank", "abc", "text", NOW)


def test_draws_are_uniform() -> None:
    """20,000 of them: Kolmogorov and Smirnov's distance is below its critical value at one in a thousand."""
    shares = np.sort(_shares(KEY))
    steps = np.arange(len(shares) + 1) / len(shares)
    distance = max(np.max(steps[1:] - shares), np.max(shares - steps[:-1]))
    assert distance < 1.95 / math.sqrt(len(shares))
    assert shares[0] >= 0.0
    assert shares[-1] < 1.0


def test_the_largest_id_falls_below_one() -> None:
    """A probability of one audits every call, one of zero none."""
    assert share("f" * 32) < 1.0
    assert share("0" * 32) == 0.0


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5])
def test_the_share_that_is_audited_is_the_one_that_was_asked_for(probability: float) -> None:
    """Within four standard deviations of a binomial, over 20,000 calls."""
    audited = int(np.sum(_shares(KEY) < probability))
    assert abs(audited - 20_000 * probability) < 4 * math.sqrt(20_000 * probability * (1 - probability))


def test_one_keys_draws_tell_nothing_of_anothers() -> None:
    """Correlation, and how often both choose a call, are those of independent draws."""
    one, other = _shares(KEY), _shares(OTHER)
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(len(one))
    both, expected = int(np.sum((one < 0.1) & (other < 0.1))), len(one) * 0.01
    assert abs(both - expected) < 4 * math.sqrt(expected)


def test_a_text_that_is_not_unicode_is_drawn() -> None:
    """JSON may hold a lone surrogate."""
    draw = Draw(KEY)
    assert draw.id("bank", "abc", "\ud800", NOW) != draw.id("bank", "abc", "?", NOW)


def test_a_key_that_can_be_guessed_is_refused() -> None:
    """Without it a client could choose its draws."""
    with pytest.raises(ValueError, match="15 bytes can be guessed"):
        Draw(b"k" * 15)


def test_the_oldest_ids_are_forgotten() -> None:
    """What is remembered is bounded."""
    seen = Seen(3)
    assert [seen.add(name) for name in "abca"] == [True, True, True, False]
    assert seen.add("d")
    assert not seen.add("b")
    assert seen.add("a")
