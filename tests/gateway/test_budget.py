"""What audits may cost, and what they did."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.budget import Budget, Price


def test_no_more_is_reserved_than_was_granted() -> None:
    """And a call that was not made can be reserved again."""
    budget = Budget()
    assert not budget.reserve()
    budget.grant(2)
    assert [budget.reserve() for _ in range(3)] == [True, True, False]
    budget.release()
    assert budget.left == 1
    assert budget.reserve()


def test_what_was_spent_is_told_once() -> None:
    """Calls and money since it was last asked."""
    budget = Budget()
    budget.grant(5)
    for usd in (0.25, 0.5):
        assert budget.reserve()
        budget.spend(usd)
    assert budget.take() == (2, 0.75)
    assert budget.take() == (0, 0.0)
    assert budget.left == 3


def test_what_is_left_can_be_taken_back() -> None:
    """So that another process may have it."""
    budget = Budget()
    budget.grant(5)
    assert budget.reserve()
    assert budget.withdraw() == 4
    assert not budget.reserve()
    budget.spend(0.0)
    assert budget.take() == (1, 0.0)


def test_threads_may_share_it() -> None:
    """Nothing is granted or counted twice."""
    budget = Budget()

    def use(_: int) -> int:
        budget.grant(1)
        made = 0
        while budget.reserve():
            budget.spend(1.0)
            made += 1
        return made

    with ThreadPoolExecutor(4) as pool:
        made = sum(pool.map(use, range(4_000)))
    assert budget.take() == (4_000, 4_000.0)
    assert (made, budget.left) == (4_000, 0)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        ({"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}, 0.0012),
        ({"input_tokens": 1_000, "output_tokens": 100}, 0.0012),
        ({"prompt_tokens": 1_000}, 0.0018),
        (None, 0.0028),
        ("none", 0.0028),
        ({"prompt_tokens": -1, "completion_tokens": "7"}, 0.0028),
    ],
)
def test_the_cost_is_what_the_answer_says(usage: object, usd: float) -> None:
    """Where it says nothing, a token for every four bytes."""
    assert Price(1.0, 2.0).of(usage, sent=8_000, received=1_600) == pytest.approx(usd)


def test_without_a_price_nothing_costs_anything() -> None:
    """Calls are counted all the same."""
    assert Price().of({"prompt_tokens": 1_000}, 10, 10) == 0.0
