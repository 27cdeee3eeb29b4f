"""The demo's traffic: wide, skewed, reproducible, and hard enough to be honest."""

from collections import Counter
from random import Random

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from gateway.demo import costs, grammar, workload


@pytest.mark.parametrize("seed", [7, 20_231])
def test_eight_thousand_distinct(seed: int) -> None:
    """One seed gives eight thousand messages, all different even when case, digits and punctuation are ignored."""
    messages = workload.messages(8_000, seed)
    spelt = {"".join(ch for ch in message.text.lower() if ch.isalpha()) for message in messages}
    assert len(spelt) >= 0.995 * 8_000
    assert len({message.text for message in messages}) == 8_000


def test_a_seed_fixes_everything() -> None:
    """The same seed gives the same messages and labels; another seed gives others."""
    assert workload.messages(500, 3) == workload.messages(500, 3)
    assert len(set(workload.messages(500, 3)) & set(workload.messages(500, 4))) < 50


def test_labels_are_many_and_skewed() -> None:
    """Thirty-six labels or more occur, the commonest several times as often as the rarest."""
    counts = Counter(message.label for message in workload.messages(6_000, 7))
    assert set(counts) == set(workload.bank().labels)
    assert len(counts) >= 36
    assert max(counts.values()) >= 4 * min(counts.values())
    assert counts["other"] > 100


def test_no_template_shows_through() -> None:
    """No message holds a bracket, a slot or a doubled space of the grammar."""
    for message in workload.messages(6_000, 7):
        assert not set("()<>|") & set(message.text), message.text
        assert "  " not in message.text
        assert message.text.strip()


def test_people_type_differently() -> None:
    """Some messages are all lower case, some shouted, some end in a question mark, some in nothing."""
    texts = [message.text for message in workload.messages(3_000, 7)]
    assert 0.2 < sum(text.islower() for text in texts) / len(texts) < 0.8
    assert sum(text.isupper() for text in texts) > 20
    assert 0.05 < sum(text.endswith("?") for text in texts) / len(texts) < 0.5
    assert 0.2 < sum(text[-1].isalpha() for text in texts) / len(texts) < 0.8


def test_hard_but_not_hopeless() -> None:
    """A linear model on words starts well below certainty with 1,500 messages and is clearly better with 4,500."""
    messages = workload.messages(6_000, 7)
    few, many = (_accuracy(messages[:n], messages[4_500:]) for n in (1_500, 4_500))
    assert 0.65 < few < 0.90
    assert few + 0.05 < many < 0.97


def test_too_many_is_an_error() -> None:
    """Asking for more messages than the grammar holds says how many there are instead of repeating some."""
    with pytest.raises(ValueError, match="distinct messages"):
        workload.messages(200_000, 7)


def test_the_prompt_lists_the_labels() -> None:
    """Every label the teacher may answer stands in the instructions."""
    assert all(f"- {label}" in workload.system_prompt() for label in workload.bank().labels)


@pytest.mark.parametrize("template", ["a (b|c", "a b)", "(a|(b)"])
def test_broken_template(template: str) -> None:
    """A bracket without its partner is an error that shows the template."""
    with pytest.raises(ValueError, match="template"):
        grammar.parse(template)


def test_expansion() -> None:
    """A template gives every combination of its choices, with slots filled and stray spaces closed up."""
    parts = grammar.parse("I (|really )want (a <thing>|(two|three) <thing>s) ?")
    seen = {grammar.expand(parts, {"thing": ["cat", "dog"]}, Random(i)) for i in range(300)}
    assert grammar.count(parts) == len({expansion.skeleton for expansion in seen}) == 6
    assert "I really want three dogs?" in {expansion.text for expansion in seen}
    assert len({expansion.text for expansion in seen}) == 12


def test_cost_of_a_call() -> None:
    """A call costs its prompt and its answer at their prices."""
    usage = costs.estimate(["x" * 400, "y" * 40], "label_name")
    assert usage == costs.Usage(prompt=118, completion=3)
    assert costs.dollars(usage, costs.Price("p", prompt=1.0, completion=2.0)) == pytest.approx(124e-6)


def _accuracy(seen: list[workload.Message], new: list[workload.Message]) -> float:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    model = LinearSVC()
    model.fit(vectorizer.fit_transform([message.text for message in seen]), [message.label for message in seen])
    return float(model.score(vectorizer.transform([m.text for m in new]), [m.label for m in new]))
