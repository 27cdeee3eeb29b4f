"""The variable part of templated messages, and that the surrogate reads nothing else."""

import time
import timeit
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.artifact import read_manifest
from policies.evaluation import evaluate
from policies.features import TextEncoder
from policies.fitting import fit_policy, update_policy
from policies.forms import Forms
from policies.input_form import InputForm, learn_input_form
from policies.learning import prepare
from policies.policy import Policy
from policies.settings import FitConfig
from policies.static_table import load_static_table
from policies.types import Reason, Trace
from tests.traces_maker import make_traces

_SHOTS = "Text: my parcel is late\nIntent: delivery\n\nText: block my card\nIntent: card_lost\n\n"
TEMPLATES = {
    "instruction first": "Classify the intent of this customer message.\n\nMessage: {}",
    "few-shot": _SHOTS + "Text: {}\nIntent:",
    "labels after the text": "{}\n\nLabels: refund, loan, card_lost, balance\nAnswer with one label.",
    "tags": "<message>{}</message>",
    "quotes": 'Which queue takes "{}"? Queue:',
    "fence": "```\n{}\n```\n\nSort the text above into a queue.",
    "json": '{{"task": "classify", "text": "{}"}}',
    "long": "Rule: be brief. " * 1_500 + "\n\nInput: {}\n",
}
_TEXTS = [trace.input for trace in make_traces(400)]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_variable_part_is_found(template: str) -> None:
    """Whatever the style: instruction, examples, labels before or after."""
    form = learn_input_form([template.format(text) for text in _TEXTS])
    assert form is not None
    assert [form.variable(template.format(text)) for text in ("new text", *_TEXTS)] == ["new text", *_TEXTS]
    assert form.variable("new text") is None


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_features_are_those_of_the_variable_part(template: str) -> None:
    """Golden: token for token, near-duplicates and equal inputs included, the template leaves no trace."""
    config = FitConfig()
    plain = make_traces(300)
    templated = Forms.learn([replace(trace, input=template.format(trace.input)) for trace in plain])
    found = prepare(templated.traces, config, config.features, None, lambda *_: None)
    expected = prepare(plain, config, config.features, None, lambda *_: None)
    assert found.reading is not None
    assert expected.reading is not None
    assert found.reading.tokens is not None
    assert expected.reading.tokens is not None
    encoder = TextEncoder(load_static_table(None).tokenizer_json)
    assert [found.reading.tokens.row(i) for i in range(300)] == [encoder.encode(trace.input) for trace in plain]
    assert (found.reading.stages[0].features.dense == expected.reading.stages[0].features.dense).all()
    assert (found.groups == expected.groups).all()
    assert (found.near == expected.near).all()


@pytest.mark.parametrize("template", [TEMPLATES["few-shot"], TEMPLATES["long"]], ids=["few-shot", "long"])
def test_a_policy_applies_the_template_itself(template: str, tmp_path: Path) -> None:
    """It decides on a templated message as a policy of the bare texts does on the text; others it defers."""
    traces = make_traces(600)
    built = [replace(trace, input=template.format(trace.input)) for trace in traces]
    manifest = fit_policy(built, tmp_path / "built", FitConfig(0.85)).manifest
    fit_policy(traces, tmp_path / "bare", FitConfig(0.85))
    policy, bare = Policy.load(tmp_path / "built"), Policy.load(tmp_path / "bare")
    assert manifest.input_form == InputForm(*template.split("{}"))
    calls = make_traces(200, seed=1)
    messages = [template.format(trace.input) for trace in calls]
    assert [policy.decide(text) for text in messages] == [bare.decide(trace.input) for trace in calls]
    assert [policy.decide_quickly(text) for text in messages] == [bare.decide(trace.input) for trace in calls]
    assert policy.decide(calls[0].input).reason is Reason.TEMPLATE
    assert policy.decide(template.format("")).reason is Reason.EMPTY
    assert policy.decide(template.format("x" * 20_000)).reason is Reason.TOO_LONG
    assert evaluate(policy, calls).by_reason == {"template": 200}


def test_traces_off_the_template_are_never_handled_and_counted(tmp_path: Path) -> None:
    """They stand in the gate as calls that are deferred, and the policy folder keeps all traces as they came."""
    template = TEMPLATES["instruction first"]
    traces = [
        trace if i % 100 == 50 else replace(trace, input=template.format(trace.input))
        for i, trace in enumerate(make_traces(800))
    ]
    result = fit_policy(traces, tmp_path, FitConfig(0.85))
    assert any(note.startswith("8 inputs are not built like the others (the part after") for note in result.notes)
    assert not any("too long to be read whole" in note for note in result.notes)  # one fact, one note
    certificate = result.manifest.certificate
    assert not certificate.refused
    assert certificate.n_judged == 800
    assert certificate.n_handled <= 792
    kept = (tmp_path / read_manifest(tmp_path).files["traces"].path).read_text()
    assert kept.count("Classify the intent") == 792


def test_an_update_learns_the_template_anew(tmp_path: Path) -> None:
    """From all traces: where the new ones are built otherwise, messages are read whole again."""
    template = TEMPLATES["instruction first"]
    traces = [replace(trace, input=template.format(trace.input)) for trace in make_traces(500)]
    fit_policy(traces, tmp_path, FitConfig(0.80))
    assert Policy.load(tmp_path).decide("no template here").reason is Reason.TEMPLATE
    result = update_policy(make_traces(500, seed=1), tmp_path)
    assert result.replaced
    assert Policy.load(tmp_path).decide("no template here").reason is not Reason.TEMPLATE


def test_embeddings_have_no_template(tmp_path: Path) -> None:
    """The text is not what the policy reads."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 300)
    matrix = (generator.normal(size=(3, 8))[truth] + 0.2 * generator.normal(size=(300, 8))).astype(np.float32)
    traces = [Trace(f"Classify this row of numbers: {i}", f"label{k}") for i, k in enumerate(truth)]
    manifest = fit_policy(traces, tmp_path, FitConfig(0.8), matrix).manifest
    assert manifest.input_form is None
    assert Policy.load(tmp_path).decide(matrix[0]).handled


@pytest.mark.parametrize(
    "texts",
    [
        _TEXTS,
        [f"Hi {text}" for text in _TEXTS],
        ["Where is my card, please?"] * 50,
        ["Where is my card, please?"] * 40 + ["Where is my card, please? Hello"] * 10,
        ["a long text of its own"],
        [],
        ["", ""],
        [TEMPLATES["tags"].format(text) if i % 10 else text for i, text in enumerate(_TEXTS)],
    ],
    ids=["plain", "short", "one text", "empty parts", "one trace", "none", "nothing", "one in ten without"],
)
def test_what_is_no_template(texts: list[str]) -> None:
    """Free text, a word that all begin with, one text over and over, and a template that too many lack."""
    assert learn_input_form(texts) is None


def test_words_are_not_cut() -> None:
    """Where all messages happen to begin with the same letters, these belong to the message."""
    texts = [f"Message to sort: re{text}ing\nLabel:" for text in ("fund", "turn", "pay", "place", "do")] * 20
    assert learn_input_form(texts) == InputForm("Message to sort: ", "\nLabel:")


def test_a_beginning_that_most_messages_share_stays_with_them() -> None:
    """One in eighty does not say hello: it is on the template all the same."""
    template = TEMPLATES["instruction first"]
    texts = [template.format(text if i % 80 == 7 else f"Hi {text}") for i, text in enumerate(_TEXTS)]
    form = learn_input_form(texts)
    assert form == InputForm(template.removesuffix("{}"), "")


def test_prefix_and_suffix_never_overlap() -> None:
    """A message shorter than the two together is not built like the traces."""
    form = InputForm("ab ab", "ab ab")
    assert form.variable("ab ab") is None
    assert form.variable("ab ab ab") is None
    assert form.variable("ab abab ab") == ""


def test_a_million_traces_take_seconds() -> None:
    """The work grows with the characters, not with their square."""
    texts = [TEMPLATES["few-shot"].format(text) for text in _TEXTS] * 500
    started = time.perf_counter()
    assert learn_input_form(texts) == InputForm(*TEMPLATES["few-shot"].split("{}"))
    assert time.perf_counter() - started < 10


_DATED = "Today is 2025-11-{day:02d}, 09:30. Release 3.4.1.\n\nMessage: {text}\nLabels 1-4:"


@pytest.mark.parametrize("later", ["2025-12-01, 23:59. Release 3.10.1", "1999-1-1, 0:00. Release 12.0.25"])
def test_a_template_survives_the_next_day_and_the_next_release(later: str) -> None:
    """Numbers that all traces share stand for any number, shorter or longer; other words do not."""
    form = learn_input_form([_DATED.format(day=3, text=text) for text in _TEXTS])
    assert form is not None
    assert form.variable(_DATED.format(day=3, text="block 2 cards")) == "block 2 cards"
    built = f"Today is {later}.\n\nMessage: block 2 cards\nLabels 10-12:"
    assert form.variable(built) == "block 2 cards"
    assert form.variable(built.replace("Today", "Yesterday")) is None
    assert form.variable(built.replace("10-12", "all")) is None
    assert form.variable(built.replace("Release", "Release v")) is None
    assert form.caveat != ""


def test_numbers_that_differ_between_traces_are_read() -> None:
    """Nothing of a date, an identifier or a version is swallowed, and the message of another month is built so, too."""
    for template in ("Please sort. Date: 2025-11-{:02d} | {}", "Customer of App v3.4.{}: {}", "Sort session 40{}: {}"):
        texts = [template.format(i % 28 + 1, text) for i, text in enumerate(_TEXTS)]
        form = learn_input_form(texts)
        assert form is not None
        assert form.prefix == template[: min(template.index(digit) for digit in "234" if digit in template)].rstrip("v")
        assert form.suffix == ""
        assert form.caveat == ""
        other = texts[0].replace("11", "12").replace("3.4", "4.0")
        assert form.variable(other) == other.removeprefix(form.prefix)


def test_a_policy_of_one_day_answers_the_next_day(tmp_path: Path) -> None:
    """Decision by decision, whatever the date; and the fit says what it reads."""
    traces = make_traces(600)
    built = [replace(trace, input=_DATED.format(day=3, text=trace.input)) for trace in traces]
    result = fit_policy(built, tmp_path / "built", FitConfig(0.85))
    fit_policy(traces, tmp_path / "bare", FitConfig(0.85))
    assert any(
        note.startswith("inputs are built from a template: only the part after ...") and "'\\nLabels 1-4:'" in note
        for note in result.notes
    )
    policy, bare = Policy.load(tmp_path / "built"), Policy.load(tmp_path / "bare")
    calls = make_traces(100, seed=1)
    later = [_DATED.format(day=17, text=trace.input).replace("3.4.1", "3.10.0") for trace in calls]
    assert [policy.decide(text) for text in later] == [bare.decide(trace.input) for trace in calls]


def test_a_policy_of_one_month_answers_the_next_month(tmp_path: Path) -> None:
    """Where the date stands in the part that is read, a new one makes few calls strange."""
    template = "Date: 2025-{:02d}-{:02d}\n\nCustomer: {}"
    traces = [
        replace(t, input=template.format(11, i // 30 + 1, t.input), ts=float(i)) for i, t in enumerate(make_traces(800))
    ]
    fit_policy(traces, tmp_path, FitConfig(0.85))
    policy, calls = Policy.load(tmp_path), make_traces(300, seed=1)
    now, later = (
        sum(policy.decide(template.format(month, i % 28 + 1, t.input)).handled for i, t in enumerate(calls))
        for month in (11, 12)
    )
    assert later > 0.9 * now > 100


@pytest.mark.parametrize(
    "prefix",
    [
        "\u6b21\u306e\u6587\u3092\u5206\u985e\u3057\u3066\u304f\u3060\u3055\u3044",
        "\u8bf7\u5bf9\u4ee5\u4e0b\u5ba2\u6237\u6d88\u606f\u8fdb\u884c\u5206\u7c7b\u5904\u7406",
    ],
)
def test_scripts_without_spaces_have_templates(prefix: str) -> None:
    """Between two Japanese or Chinese letters a word may end anywhere."""
    assert learn_input_form([f"{prefix}{text}" for text in _TEXTS]) == InputForm(prefix, "")


def test_a_template_is_found_in_a_microsecond_however_hostile_the_text() -> None:
    """The same day half a microsecond, another day one; 100 kB of digits or line ends a few milliseconds."""
    form = InputForm("Date: 2025-11-01 08:00:00\n\nCustomer: ", "\n\n\nOf 2025:")
    built = "Date: 2025-12-24 18:30:00\n\nCustomer: hello\n\n\nOf 2026:"
    assert form.variable(built) == "hello"

    def seconds(text: str, times: int) -> float:
        return min(timeit.repeat(lambda: form.variable(text), number=times, repeat=5)) / times

    assert seconds(built, 2_000) < 10e-6
    for text in ("Date: " + "1" * 100_000, "Date: " + "1-" * 50_000, "\n" * 100_000 + ":", "1" * 100_000 + ":"):
        assert form.variable(text) is None
        assert seconds(text, 1) < 0.005
