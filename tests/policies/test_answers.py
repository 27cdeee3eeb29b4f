"""Answer forms: which answers are one label, what it is called, and how the teacher writes it."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from policies.answer_fields import Row, learn_fields
from policies.answers import AnswerForms
from policies.types import Answer, AnswerKind

_INTENTS = ["refund", "card_lost", "balance", "transfer"]
_QUEUES = {"refund": "billing", "card_lost": "cards", "balance": "billing", "transfer": "payments"}


def _texts(*texts: str) -> list[Answer]:
    return [Answer(text) for text in texts]


def _call(name: str, arguments: str | None) -> Answer:
    return Answer(name, AnswerKind.TOOL, arguments)


def _objects(make: Callable[[random.Random], object], n: int = 1_000) -> list[Answer]:
    generator = random.Random(0)
    return [Answer(json.dumps(make(generator))) for _ in range(n)]


def _learn(answers: Sequence[Answer], merge: bool = True) -> AnswerForms:
    """Forms, checked for what always holds: they survive the manifest and know every answer again."""
    forms = AnswerForms.learn(answers, merge)
    kept = AnswerForms.from_dict(json.loads(json.dumps(forms.only(forms.answers).to_dict())))
    assert [kept.label_of(answer) for answer in answers] == forms.labels
    assert set(forms.labels) - {None} == set(forms.answers) == set(forms.keys.values())
    assert len(forms.keys) == len(forms.answers)
    for label, answer in kept.answers.items():
        assert kept.label_of(answer) == label
    return forms


@pytest.mark.parametrize(
    "text",
    [
        "Refund",
        "REFUND",
        "refund.",
        "refund!",
        " refund \n",
        '"refund"',
        "'Refund'.",
        "`refund`",
        "**Refund.**",
        "*`refund`*",
        "\u201crefund\u201d",
        "```\nrefund\n```",
        '"refund".',
    ],
)
def test_spellings_of_a_label_are_one(text: str) -> None:
    """Case, white space, quotes, backticks, asterisks, a full stop or exclamation mark make no other label."""
    forms = _learn(_texts("refund", "refund", text, "loan", "loan"))
    assert forms.labels == ["refund", "refund", "refund", "loan", "loan"]


@pytest.mark.parametrize(
    "text", ["refund?", "re fund", "refunds", "a refund", "refund, please", '"refund', "refund..a"]
)
def test_what_says_something_else_is_another_label(text: str) -> None:
    """A question mark, a space within or another word does."""
    assert len(_learn(_texts("refund", "refund", text)).answers) == 2


@pytest.mark.parametrize("text", [".", "!", '""', "**", "''", "...", "?"])
def test_punctuation_alone_stays_what_it_is(text: str) -> None:
    """Nothing is normalised away to nothing."""
    forms = _learn(_texts("refund", text))
    assert forms.label_of(Answer(text)) not in {None, "refund"}
    assert forms.label_of(Answer("")) is None


def test_the_answer_is_the_form_that_the_teacher_uses_most() -> None:
    """Exact case, quotes and white space; what else it stands for is counted, and of a tie the first in order is it."""
    forms = _learn(_texts(*['"Refund" \n'] * 3, "refund.", "refund.", "REFUND", "loan", "Loan"))
    assert forms.answers == {'"Refund"': Answer('"Refund" \n'), "Loan": Answer("Loan")}
    assert forms.merges == {'"Refund"': {"refund.": 2, "REFUND": 1}, "Loan": {"loan": 1}}
    assert forms.label_of(Answer("ReFuNd")) == '"Refund"'
    assert forms.label_of(Answer("credit")) is None


def test_the_order_of_the_traces_changes_nothing() -> None:
    """Names, forms and merges are the same for every order of the same answers."""
    answers = [*_texts("a", "A", "a.", "b", "B"), _call("a", "{}"), *_texts('{"x": "a"}', '{"x":"a"}', '{"x": "b"}')]
    shuffled = answers.copy()
    random.Random(0).shuffle(shuffled)
    first, second = _learn(answers), _learn(shuffled)
    assert (first.answers, first.keys, first.merges) == (second.answers, second.keys, second.merges)


def test_the_order_of_the_traces_changes_nothing_in_fields() -> None:
    """Of fields that say the same, and of answers as frequent, the same ones lead, whoever came first."""
    generator = random.Random(1)
    pairs = _texts(*['{"intent": "refund", "team": "A"}'] * 10, *['{"team": "B", "intent": "cancel"}'] * 10)
    numbers = [Answer(json.dumps({"n": n, "s": s})) for n, s in ((1, "a"), ("x", "b")) for _ in range(10)]
    # More fields than are looked at, all as frequent.
    wide = [Answer(json.dumps({f"k{i:03}": generator.choice("ab") for i in range(80)})) for _ in range(40)]
    backwards = [Answer(json.dumps(dict(reversed(json.loads(answer.text).items())))) for answer in wide]
    tied = [Answer(text) for answer in pairs[::10] for text in (answer.text, answer.text.replace(" ", ""))]
    for answers in (pairs, numbers, [*wide, *backwards], tied):
        known = {str((f.answers, f.keys, f.fields, f.words, f.notes)) for f in map(_learn, _orders(answers))}
        assert len(known) == 1


def _orders(answers: list[Answer]) -> list[list[Answer]]:
    generator = random.Random(0)
    return [answers, answers[::-1], *(generator.sample(answers, len(answers)) for _ in range(5))]


def test_unmerged_every_spelling_is_a_label() -> None:
    """On request; a person who would take them for one is told."""
    forms = _learn(_texts("US", "us", "us", "US.", "us "), merge=False)
    assert sorted(forms.answers) == ["US", "US.", "us", "us "]
    assert forms.merges == {}
    assert any("'US' and 'us'" in note for note in forms.notes)


@pytest.mark.parametrize("prefix", ["Intent: ", "urgent: ", "no - ", "10:", "> ", "the label is "])
def test_what_stands_in_front_is_part_of_the_answer(prefix: str) -> None:
    """Words before a label make another one, however many labels they stand before: "urgent: tech" is not "tech"."""
    names = ["refund", "loan", "15", "20", "fraud"]
    forms = _learn(_texts(*names * 10, *[f"{prefix}{name}" for name in names] * 10))
    assert set(forms.answers) == {*names, *(f"{prefix}{name}" for name in names)}
    assert forms.merges == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10\u2075", "105"),
        ("\u2460", "1"),
        ("x\u00b2", "x2"),
        ("5!", "5"),
        ("1.", "1"),
        ("v1.", "v1"),
        ("\uff21", "A"),
        ('"a" or "b"', 'a" or "b'),
        ("*a* *b*", "a* *b"),
        ("**a** or **b**", "a** or **b"),
        ("no?", "no"),
        ("+!", "+"),
        ('["US"]', '["us"]'),
        ('[{"id":"aB"}]', '[{"id":"Ab"}]'),
        ('```json\n["US"]\n```', '["us"]'),
        ("[US", "[us"),
        ('{"a":"X"}.', '{"a":"x"}.'),
        ('{"a":"X","a":1}', '{"a":"x","a":1}'),
        ('"{US}"', '"{us}"'),
    ],
)
def test_what_only_looks_alike_is_told_apart(one: str, other: str) -> None:
    """Digits in other shapes, signs after a number, quotes that are no pair, and case within what looks like JSON."""
    forms = _learn(_texts(one, one, other, other))
    assert len(forms.answers) == 2
    assert forms.label_of(Answer(one)) != forms.label_of(Answer(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[1, 2]", "[1,2]"),
        ('[{"a":1,"b":2}]', '```json\n[{"b": 2.0, "a": 1}]\n```'),
        ("na\u00efve", "nai\u0308ve"),
        ("U.S.", "u.s"),
        ("etc.", "etc"),
        ("'5'.", "5"),
    ],
)
def test_equal_arrays_and_other_encodings_are_the_same(one: str, other: str) -> None:
    """Arrays as values; an accent of its own or in the letter."""
    assert len(_learn(_texts(one, one, other)).answers) == 1


def test_spellings_that_are_both_frequent_stay_two_labels() -> None:
    """US the country and us the people: apart at fit and at serve, with a note; a rare third way is the usual one."""
    forms = _learn(_texts(*["US"] * 60, *["us"] * 30, *["Us."] * 3, *['"us"'] * 2, *["loan"] * 50, *["LOAN"] * 4))
    assert set(forms.answers) == {"US", "us", "loan"}
    assert [forms.label_of(Answer(text)) for text in ("US.", "**us**", "uS", "Loan!")] == ["US", "us", "US", "loan"]
    assert forms.merges == {"US": {"Us.": 3}, "us": {'"us"': 2}, "loan": {"LOAN": 4}}
    assert any("'US' and 'us'" in note for note in forms.notes)


@pytest.mark.parametrize(("rare", "labels"), [(4, 1), (5, 2)])
def test_a_spelling_is_frequent_from_five_and_a_twentieth_on(rare: int, labels: int) -> None:
    """Below either it is a slip."""
    rest = ["loan"] * 20
    assert len(_learn(_texts(*rest, *["US"] * 20, *["us"] * rare)).answers) == labels + 1
    assert len(_learn(_texts(*rest, *["US"] * 95, *["us"] * rare)).answers) == labels + 1
    assert len(_learn(_texts(*rest, *["US"] * 96, *["us"] * 5)).answers) == 2


def test_a_teacher_that_writes_most_labels_in_two_ways_means_one_by_them() -> None:
    """Case that varies everywhere is a manner, and no second answer."""
    forms = _learn(_texts(*[name for label in ("loan", "card", "fee") for name in (label, label.title())] * 20))
    assert len(forms.answers) == 3
    assert forms.merges["Card"] == {"card": 20}
    mostly = [*["loan", "card", "fee", "fee", "cash"] * 20, *["Loan", "Card"] * 20]
    assert len(_learn(_texts(*mostly)).answers) == 6


@pytest.mark.parametrize(
    "text",
    [
        "```json" + "\n" * 100_000 + "x",
        "```json\n{" + " \n" * 50_000 + "}```",
        "```" + "\n" * 100_000 + "```",
        "\n" * 100_000,
        '"' * 100_000,
        "*" * 100_000 + "a",
        '"*' * 50_000 + "a" + '*"' * 50_000,
        ".! " * 33_000,
        ": " * 50_000,
        "[" * 100_000,
        "{" * 50_000 + "}" * 50_000,
    ],
    ids=range(11),
)
def test_no_answer_takes_long_to_recognise(text: str) -> None:
    """100 kB of anything: the key's cost grows with the text, not with its square."""
    forms = AnswerForms()
    best = 1.0
    for _ in range(3):
        started = time.perf_counter()
        forms.label_of(Answer(text))
        best = min(best, time.perf_counter() - started)
    assert best < 0.05


def test_equal_objects_are_one_label() -> None:
    """Key order, white space, 1 and 1.0, a fenced block: the same value. The answer is the usual one, to the byte."""
    usual = '{"intent": "refund",\n "score": 1}'
    same = [
        '{"score":1,"intent":"refund"}',
        '```json\n{"intent":"refund","score":1.0}\n```',
        '```\n{"score":1,"intent":"refund"}```',
    ]
    forms = _learn(_texts(usual, usual, *same, '{"intent": "loan", "score": 1}', '{"intent": "loan", "score": 1}'))
    assert forms.labels == ["refund"] * 5 + ["loan"] * 2
    assert forms.answers["refund"] == Answer(usual)
    assert forms.label_of(Answer('{"intent": "Refund", "score": 1}')) is None  # values are data, not spelling
    assert forms.merges == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": -Infinity}',
        "{" * 5_000 + "}" * 5_000,
        '{"a": 1}}',
        "{}{}",
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        f'{{"a": {"9" * 5_000}}}',
        "```json\n{broken\n```",
        "```json```",
        "[1]",
    ],
)
def test_what_readers_disagree_on_is_plain_text(text: str) -> None:
    """Duplicate keys, numbers that are none, endless nesting and halves of JSON are texts like others, and no crash."""
    forms = _learn(_texts(text, text, '{"a": 1}', '{"a": 1}'))
    assert forms.answers[forms.labels[0] or ""] == Answer(text)
    assert len(forms.answers) == 2


def test_one_field_names_the_label_where_it_tells_all() -> None:
    """Other fields are constant, or follow from it; the name is the value, of whatever type and at whatever depth."""
    forms = _learn(
        _objects(lambda r: {"v": 1, "out": {"queue": _QUEUES[i := r.choice(_INTENTS)], "intent": i}, "tags": [i]})
    )
    assert sorted(forms.answers) == sorted(_INTENTS)
    assert forms.fields == ("out.intent",)
    assert forms.words == "JSON objects, label at 'out.intent', other fields constant"
    assert forms.heads() is None
    assert sorted(_learn(_objects(lambda r: {"spam": r.random() < 0.3})).answers) == ["false", "true"]
    assert sorted(_learn(_objects(lambda r: {"n": r.choice([1, 2.5, None])})).answers) == ["1", "2.5", "null"]


def test_a_field_that_deviates_is_a_disagreement() -> None:
    """One in a hundred answers gives the intent another queue: no label, and counted in a note."""
    answers = _objects(
        lambda r: {"intent": (i := r.choice(_INTENTS)), "queue": "odd" if r.random() < 0.01 else _QUEUES[i]}
    )
    forms = _learn(answers)
    odd = sum("odd" in answer.text for answer in answers)
    assert 0 < odd == forms.labels.count(None)
    assert sorted(forms.answers) == sorted(_INTENTS)
    assert forms.notes == [f"{odd} JSON answers do not follow the form of the others, and count as disagreement"]


def test_fields_that_vary_on_their_own_are_predicted_each() -> None:
    """Every object is a label, and `heads` gives its class in each field."""
    forms = _learn(
        _objects(lambda r: {"intent": (i := r.choice(_INTENTS)), "queue": _QUEUES[i], "urgent": r.random() < 0.2})
    )
    heads = forms.heads()
    assert forms.fields == ("intent", "urgent")
    assert forms.words == "JSON objects, labels at 'intent' and 'urgent', other fields constant"
    assert heads is not None
    assert set(heads) == set(forms.answers)
    assert len(heads) == 8
    assert len(set(heads.values())) == 8
    assert [sorted({row[i] for row in heads.values()}) for i in (0, 1)] == [[0, 1, 2, 3], [0, 1]]
    urgent = {label: "true" in label for label in heads}
    assert len({(urgent[label], row[1]) for label, row in heads.items()}) == 2
    assert '{"intent":"refund","queue":"billing","urgent":false}' in heads


def test_answers_of_other_kinds_have_classes_of_their_own_beside_heads() -> None:
    """A teacher that says a word now and then does not spoil the fields."""
    objects = _objects(lambda r: {"intent": r.choice(_INTENTS), "urgent": r.random() < 0.5})
    heads = _learn([*objects, *_texts("unclear", "unclear", "spam")]).heads()
    assert heads is not None
    assert len(heads) == len(set(heads.values())) == 10
    assert heads["unclear"] < heads["spam"]  # seen twice: before what was seen once


def test_a_rare_value_is_no_exception() -> None:
    """A flag raised in one answer of a hundred is the decision, not noise on a constant field."""
    forms = _learn(_objects(lambda r: {"lang": r.choice(["en", "fr"]), "flagged": r.random() < 0.01}, 5_000))
    assert forms.fields == ("lang", "flagged")
    pair = _objects(lambda r: {"flagged": (x := r.random() < 0.01), "why": "hate" if x else "none"}, 5_000)
    assert sorted(_learn(pair).answers) == ["hate", "none"]


def test_many_answers_of_many_fields_take_seconds() -> None:
    """Each field is compared with each on no more than 20,000 answers; what follows is found all the same."""
    generator = random.Random(0)
    values = [generator.randrange(300) for _ in range(40_000)]
    rows: list[tuple[Row, int]] = [
        ({(f"f{i}",): f'"{value}"' if i < 20 else f'"{generator.choice("abcd")}"' for i in range(64)}, 1)
        for value in values
    ]
    started = time.perf_counter()
    fields = learn_fields(rows)
    assert time.perf_counter() - started < 30  # some six seconds on two shared cores
    assert fields.heads == (("f0",), *((f"f{i}",) for i in range(20, 64)))
    assert fields.follows == {(f"f{i}",): ("f0",) for i in range(1, 20)}
    assert all(fields.regular)


def test_free_text_has_no_form_and_is_named() -> None:
    """A field with a new value in every answer cannot be given locally."""
    forms = _learn(_objects(lambda r: {"intent": r.choice(_INTENTS), "reason": f"because {r.random()}"}))
    assert forms.answers == {}
    assert forms.notes == [
        "field 'reason' is free text (1,000 values in 1,000 answers): such answers cannot be given locally"
    ]


def test_a_reason_that_follows_from_the_label_is_no_free_text() -> None:
    """The same words for the same label are a constant field of it."""
    forms = _learn(_objects(lambda r: {"intent": (i := r.choice(_INTENTS)), "reason": f"it speaks of {i}"}))
    assert sorted(forms.answers) == sorted(_INTENTS)


def test_objects_without_or_with_ever_new_fields() -> None:
    """An empty object is a label; keys that are data make no form, and no crash."""
    assert list(_learn(_texts("{}", "{ }", "x")).answers) == ["{}", "x"]
    forms = _learn(_objects(lambda r: {f"key {r.random()}": 1}))
    assert forms.labels.count(None) > 900


def test_tools_are_labels_by_name() -> None:
    """With constant arguments the call is the answer, as the teacher writes it; without any, too."""
    forms = _learn([_call("block_card", '{"now": true}')] * 5 + [_call("human", "{}")] * 5 + [_call("human", "")])
    assert forms.answers == {
        "block_card": _call("block_card", '{"now": true}'),
        "human": _call("human", "{}"),
    }
    assert forms.words == "calls of 'block_card' and 'human'"


def test_no_arguments_stay_as_the_teacher_writes_them() -> None:
    """Nothing at all is the same as an empty object, and the usual one of the two is given; what is merged is shown."""
    forms = _learn([_call("human", "")] * 5 + [_call("human", "{}")] * 2 + [_call("block", '{"now":true}')] * 3)
    assert forms.answers["human"] == _call("human", "")
    assert forms.merges == {"human": {"human {}": 2}}


def test_a_tool_with_a_few_argument_sets_has_a_label_for_each() -> None:
    """Arguments stand in the name; a call with others is of no label known."""
    calls = [_call("route", json.dumps({"queue": queue})) for queue in ("cards", "loans")] * 10
    forms = _learn([*calls, _call("human", "{}"), _call("human", "{}")])
    assert sorted(forms.answers) == ["human", 'route {"queue":"cards"}', 'route {"queue":"loans"}']
    assert forms.label_of(_call("route", '{"queue":"cards"}')) == 'route {"queue":"cards"}'
    assert forms.label_of(_call("route", '{"queue":"none"}')) is None
    assert forms.label_of(_call("route", None)) is None
    assert forms.label_of(Answer("human")) is None


def test_open_arguments_are_left_to_an_llm() -> None:
    """A tool whose calls seldom have arguments seen before is one label, arguments unknown."""
    searches = [_call("search", json.dumps({"query": f"words {i}"})) for i in range(100)]
    forms = _learn([*searches, *[_call("human", "{}")] * 10, *[_call("look", None)] * 10, *[_call("broken", "{")] * 10])
    assert forms.answers == {
        "search": _call("search", None),
        "human": _call("human", "{}"),
        "look": _call("look", None),
        "broken": _call("broken", None),
    }
    assert forms.label_of(_call("search", '{"query": "something new"}')) == "search"
    assert "arguments that an LLM must write" in forms.words


@pytest.mark.parametrize(("known", "closed"), [(94, False), (96, True)])
def test_arguments_are_closed_where_nearly_all_calls_repeat_some(known: int, closed: bool) -> None:
    """At 95 of 100; then calls with arguments of their own are labels seen once."""
    rest = [_call("route", json.dumps({"queue": f"q{i}"})) for i in range(100 - known)]
    forms = _learn([*[_call("route", '{"queue": "cards"}')] * known, *rest])
    assert ("route" in forms.answers) != closed
    assert ('route {"queue":"cards"}' in forms.answers) == closed


def test_names_are_unique_whatever_happens() -> None:
    """The same word as text, number, string, tool and nothing at all."""
    answers = [
        *_texts("a", "a", " ", '{"x": "a"}', '{"x": "1"}', '{"x": 1}', '{"x": 1}', "1", '{"x": ""}', '{"x":"  "}')
    ]
    forms = _learn([*answers, _call("a", "{}"), _call("a", None), _call("1", "{}"), *_texts("a (2)", "(empty)")])
    assert len(set(forms.answers)) == len(forms.answers) == len({label for label in forms.labels if label})
    assert forms.labels[0] == "a"


def test_lone_surrogates_and_nuls_can_be_kept() -> None:
    """They become U+FFFD, as in a trace file."""
    forms = _learn(_texts("a\ud800", "a\ud800", "b\x00", "b\x00", '{"x": "\\ud800"}', '{"x": "\\ud800"}'))
    assert forms.labels[0] == "a\ufffd"
    assert None not in forms.labels


def test_kind_other_is_no_label() -> None:
    """Prose, refusals and several calls are counted in a note, and are like no other answer."""
    forms = _learn([*_texts("a", "b"), *[Answer("a", AnswerKind.OTHER)] * 3])
    assert forms.labels == ["a", "b", None, None, None]
    assert forms.notes[0].startswith("3 answers are no label")


def test_mixed_answers_are_described_by_share() -> None:
    """In words for people, the most frequent first."""
    forms = _learn([*_texts("a") * 60, *_texts('{"x": 1}', '{"x": 2}') * 15, *[_call("t", "{}")] * 10])
    assert forms.words == "plain text (60.0%); JSON objects, label at 'x' (30.0%); calls of 't' (10.0%)"


def test_random_answers_keep_what_always_holds() -> None:
    """Whatever is thrown at it: unique names, stable round trips, and every modal form is of its own label."""
    generator = random.Random(7)
    parts = [
        "a",
        "A",
        ".",
        '"',
        " ",
        "{",
        "}",
        ":",
        "1",
        "is",
        "`",
        "[",
        ",",
        "\n",
        "intent: ",
        '{"a": 1}',
        '{"a": "b"}',
    ]
    for _ in range(150):
        answers = []
        for _ in range(60):
            text = "".join(generator.choices(parts, k=generator.randint(1, 4)))
            kind = generator.choice([AnswerKind.TEXT, AnswerKind.TEXT, AnswerKind.TOOL, AnswerKind.OTHER])
            arguments = generator.choice([None, "", "{}", "{", '{"a": 1}', '{"a": 2}'])
            answers.append(Answer(text, kind, arguments if kind is AnswerKind.TOOL else None))
        forms = _learn(answers, merge=generator.random() < 0.7)
        counts = Counter(label for label in forms.labels if label is not None)
        assert counts == Counter(dict(forms.counts))
        heads = forms.heads()
        assert heads is None or len(set(heads.values())) == len(forms.answers)
