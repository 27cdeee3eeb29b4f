"""Answers that quote the input they answer."""

from policies.echoes import echoing
from policies.types import Answer, AnswerKind, Trace

TEXT = "cannot log in to the mirror app since yesterday"


def _echoing(*pairs: tuple[str, str]) -> set[str]:
    traces = [Trace(text, answer) for text, answer in pairs]
    answers = {trace.teacher: trace.answer for trace in traces}
    return echoing(traces, [trace.teacher for trace in traces], [trace.input for trace in traces], answers)


def test_an_answer_that_repeats_its_input_is_an_echo() -> None:
    """Whatever stands around it, in any case."""
    answer = "Could you tell me more about it? Cannot log in to the"
    assert _echoing((TEXT, answer), (f"please {TEXT}", answer)) == {answer}


def test_a_label_whose_words_are_met_by_chance_is_none() -> None:
    """Most of its inputs do not have them."""
    label = "The customer wants to report a lost card"
    inputs = ["I want to report a lost card", "my card is gone", "someone took my wallet", "block my card please"]
    assert _echoing(*((text, label) for text in inputs)) == set()


def test_short_labels_and_single_words_are_none() -> None:
    """A long name that the user types, too, is a name."""
    assert _echoing(
        ("card lost", "card lost"), ("x card_payment_wrong_exchange_rate", "card_payment_wrong_exchange_rate")
    ) == (set())


def test_arguments_that_quote_are_echoes_where_they_are_given() -> None:
    """A search for the user's own words; not where an LLM is to write them."""
    trace = Trace(TEXT, "search", kind=AnswerKind.TOOL, arguments='{"query": "log in to the mirror app"}')
    given = {"search": trace.answer}
    assert echoing([trace], ["search"], [trace.input], given) == {"search"}
    assert echoing([trace], ["search"], [None], given) == set()
    assert echoing([trace], ["search"], [trace.input], {"search": Answer("search", AnswerKind.TOOL)}) == set()


def test_a_label_of_many_traces_is_no_echo() -> None:
    """Its name stands in its inputs: a queue, a form's field, a list of the choices."""
    label = "Billing and Payments Department"
    assert _echoing(*((f"[Queue: {label}] request number {i}", label) for i in range(20))) == set()
    assert _echoing((f"[Queue: {label}] once", label)) == {label}
