"""The variable part of templated messages, and that the surrogate reads nothing else."""

import time
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
