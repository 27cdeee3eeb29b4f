"""A fit certifies what it can prove, refuses what it cannot, and an update never makes the served policy worse."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from policies.artifact import read_manifest, read_version
from policies.errors import ArtifactError, FitError, PolicyMissing
from policies.evaluation import evaluate
from policies.fitting import fit_policy, update_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Answer, AnswerKind, Reason, Trace
from tests.data import dataset
from tests.traces_maker import LABELS, make_traces

_TARGET = FitConfig(target_teacher_agreement=0.90)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified policy."""
    folder = tmp_path_factory.mktemp("fitted") / "policy"
    assert not fit_policy(make_traces(1_500), folder, _TARGET).manifest.certificate.refused
    return folder


def test_a_learnable_task_is_certified_and_holds_on_new_calls(tmp_path: Path) -> None:
    """Coverage is worth having, and of eight fits no more fall below target on new calls than chance allows at 1 in 10.

    More than three of eight would happen in one run of 200. `make long-tests` draws many more.
    """
    calls = make_traces(2_000, seed=1)
    violations = 0
    for seed in range(8):
        fit_policy(make_traces(1_000, seed=100 + seed), tmp_path / str(seed), replace(_TARGET, seed=seed))
        result = evaluate(Policy.load(tmp_path / str(seed)), calls)
        assert result.coverage > 0.3
        assert result.teacher_agreement is not None
        violations += result.teacher_agreement < 0.90
    assert violations <= 3


def test_the_folder_holds_what_the_format_promises(fitted: Path) -> None:
    """Manifest, graph, tokenizer, word vectors, probes, certificate, frontier, report and traces; no pickle."""
    manifest = read_manifest(fitted)
    roles = {"model", "tokenizer", "table/words.npy", "probes", "certificate", "frontier", "report", "traces"}
    assert set(manifest.files) == roles
    words = fitted / manifest.files["table/words.npy"].path
    assert np.load(words, allow_pickle=False).dtype == np.float16
    others = {(fitted / entry.path).suffix for role, entry in manifest.files.items() if role != "table/words.npy"}
    assert others == {".json", ".jsonl", ".onnx"}
    frontier = orjson.loads((fitted / manifest.files["frontier"].path).read_bytes())
    coverages = [row["coverage"] for row in frontier]
    assert coverages == sorted(coverages, reverse=True)
    assert manifest.method in {"l2d", "global"}
    assert manifest.coverage_cal == manifest.certificate.coverage


def test_the_same_seed_gives_the_same_policy(tmp_path: Path) -> None:
    """Two fits of the same traces decide alike, and another seed is really another fit."""
    traces = make_traces(400)
    graphs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = fit_policy(traces, tmp_path / name, FitConfig(0.8, seed=seed))
        graphs.append(result.manifest.files["model"].sha256)
    assert graphs[0] == graphs[1] != graphs[2]


def test_refit_mode_serves_another_model_than_strict(tmp_path: Path) -> None:
    """The mode changes what is served and stands in the certificate."""
    traces = make_traces(400)
    strict = fit_policy(traces, tmp_path / "a", FitConfig(0.8)).manifest
    refit = fit_policy(traces, tmp_path / "b", FitConfig(0.8, mode="refit")).manifest
    assert strict.files["model"].sha256 != refit.files["model"].sha256
    assert (strict.certificate.mode, refit.certificate.mode) == ("strict", "refit")


@pytest.mark.parametrize("target", [0.60, 0.80, 0.95])
def test_shuffled_labels_are_refused(tmp_path: Path, target: float) -> None:
    """Labels that have nothing to do with the texts cannot be learned, and the policy then defers everything."""
    traces = make_traces(600)
    labels = [trace.teacher for trace in traces]
    random.Random(0).shuffle(labels)
    shuffled = [replace(trace, teacher=label) for trace, label in zip(traces, labels, strict=True)]
    certificate = fit_policy(shuffled, tmp_path, FitConfig(target)).manifest.certificate
    assert certificate.refused
    assert certificate.reason
    assert Policy.load(tmp_path).decide("refund please").reason == Reason.REFUSED


def test_shuffled_banking77_is_refused_at_every_target(tmp_path: Path) -> None:
    """Real texts with shuffled labels: no target from 0.60 up is certified."""
    traces, _ = dataset("banking77")
    labels = [trace.teacher for trace in traces]
    random.Random(1).shuffle(labels)
    shuffled = [replace(trace, teacher=label) for trace, label in zip(traces, labels, strict=True)]
    targets = (0.60, 0.70, 0.80, 0.90, 0.95)
    manifest = fit_policy(shuffled, tmp_path, FitConfig(0.60, frontier_targets=targets)).manifest
    frontier = orjson.loads((tmp_path / manifest.files["frontier"].path).read_bytes())
    assert manifest.certificate.refused
    assert [row["certified"] for row in frontier] == [False] * len(targets)


def test_a_task_where_the_majority_label_would_pass_is_refused(tmp_path: Path) -> None:
    """Ninety in a hundred the same label, at random: 0.80 could be met by a constant, and is refused."""
    generator = random.Random(3)
    traces = [replace(t, teacher="yes" if generator.random() < 0.9 else "no") for t in make_traces(800)]
    certificate = fit_policy(traces, tmp_path, FitConfig(0.80)).manifest.certificate
    assert certificate.refused
    assert certificate.reason is not None
    assert "most frequent label" in certificate.reason


@pytest.mark.parametrize(
    ("traces", "says"),
    [
        (make_traces(5), "too few"),
        ([replace(trace, teacher="only") for trace in make_traces(200)], "same label"),
        ([Trace(f"text {i}", f"label {i}") for i in range(200)], "fewer than two labels"),
        ([Trace("the same text", f"label {i % 2}") for i in range(200)], "inputs are the same"),
        ([replace(t, teacher=("Loan", "loan")[i % 2]) for i, t in enumerate(make_traces(200))], "same label"),
        ([replace(t, kind=AnswerKind.OTHER) for t in make_traces(200)], "no answer has a form"),
        ([Trace(f"text {i}", f"label {i % 10_000}") for i in range(60_000)], "10000 different labels"),
        ([Trace(f"text number {i} of many", f"label {i // 2}") for i in range(200)], "fixed labels"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_its_reason(tmp_path: Path, traces: list[Trace], says: str) -> None:
    """Too few traces, one label, and an open set of labels are normal refusals, not errors."""
    certificate = fit_policy(traces, tmp_path, _TARGET).manifest.certificate
    assert certificate.refused
    assert certificate.reason is not None
    assert says in certificate.reason


def _as_json(trace: Trace, i: int) -> Trace:
    """The label in an object, written in two ways; one in a hundred has another queue."""
    row = {"intent": trace.teacher, "queue": "odd" if i % 100 == 7 else f"{trace.teacher[:4]}-queue", "v": 1}
    return replace(trace, teacher=orjson.dumps(row if i % 3 else dict(sorted(row.items(), reverse=True))).decode())


def test_objects_are_answered_in_the_teachers_form(tmp_path: Path) -> None:
    """The label is the value that tells all; what deviates from its label's object counts as disagreement."""
    traces = [_as_json(trace, i) for i, trace in enumerate(make_traces(1_200))]
    result = fit_policy(traces, tmp_path, FitConfig(0.85))
    policy = Policy.load(tmp_path)
    assert policy.labels == tuple(LABELS)
    assert policy.answers["loan"] == Answer('{"intent":"loan","queue":"loan-queue","v":1}')
    assert policy.label_of(Answer('{"v": 1.0, "queue": "loan-queue", "intent": "loan"}')) == "loan"
    assert policy.label_of(Answer('{"intent":"loan","queue":"odd","v":1}')) is None
    assert "12 JSON answers do not follow the form of the others, and count as disagreement" in result.notes
    assert result.manifest.certificate.n_judged == 1_200
    calls = [_as_json(trace, i) for i, trace in enumerate(make_traces(400, seed=1))]
    found = evaluate(policy, calls)
    assert found.coverage > 0.5
    assert 0.8 < (found.teacher_agreement or 0) < 1


def test_the_same_decisions_in_another_form_are_the_same_policy(tmp_path: Path) -> None:
    """As text, as text in several spellings, as JSON, as a tool's name or its argument: graph and certificate agree."""
    texts = make_traces(600)
    spellings = ("{}", "{}.", "{}", "**{}**", '"{}"', "{}", "{}")
    tool = AnswerKind.TOOL
    written = {
        "text": texts,
        "spelled": [replace(t, teacher=spellings[i % 7].format(t.teacher)) for i, t in enumerate(texts)],
        "json": [replace(t, teacher=f'{{"intent": "{t.teacher}"}}') for t in texts],
        "tool": [replace(t, kind=tool, arguments="{}") for t in texts],
        "open tool": [replace(t, kind=tool, arguments=f'{{"words": "{t.input}"}}') for t in texts],
    }
    found = {}
    for name, traces in written.items():
        manifest = fit_policy(traces, tmp_path / name, FitConfig(0.85)).manifest
        found[name] = manifest.files["model"].sha256, manifest.labels, manifest.certificate.coverage
    assert len(set(map(str, found.values()))) == 1
    assert Policy.load(tmp_path / "tool").answers["loan"] == Answer("loan", tool, "{}")
    assert Policy.load(tmp_path / "open tool").answers["loan"] == Answer("loan", tool, None)
    calls = [replace(t, kind=tool, arguments='{"words": "others"}') for t in make_traces(200, seed=1)]
    assert evaluate(Policy.load(tmp_path / "open tool"), calls).teacher_agreement == pytest.approx(
        evaluate(Policy.load(tmp_path / "text"), make_traces(200, seed=1)).teacher_agreement
    )


def test_spellings_are_merged_and_told_or_kept_apart(tmp_path: Path) -> None:
    """Merged by default, with what was merged; on request each is a label, and a person is told of the likeness."""
    traces = [
        replace(t, teacher=t.teacher.upper() if i % 4 == 0 else t.teacher) for i, t in enumerate(make_traces(600))
    ]
    merged = fit_policy(traces, tmp_path / "merged", FitConfig(0.8, protect=("LOAN",)))
    assert merged.manifest.labels == LABELS
    assert sum("also stands for" in note for note in merged.notes) == 5
    assert any(note.startswith("3 more labels have several spellings") for note in merged.notes)
    assert list(merged.manifest.protected) == ["loan"]
    apart = fit_policy(traces, tmp_path / "apart", FitConfig(0.8, merge_labels=False))
    assert apart.manifest.n_labels == 2 * len(LABELS)
    assert any("'BALANCE' and 'balance'" in note and "are told apart" in note for note in apart.notes)
    assert apart.manifest.certificate.refused  # case was drawn at random: nobody can know it


def test_answers_that_are_no_label_are_judged_and_never_learned(tmp_path: Path) -> None:
    """Prose and refusals stand in the gate as disagreement: the certificate is about all calls of the project."""
    traces = make_traces(1_000)
    prose = [
        replace(t, teacher="I am sorry", kind=AnswerKind.OTHER) if i % 20 == 0 else t for i, t in enumerate(traces)
    ]
    pure = fit_policy(traces, tmp_path / "pure", FitConfig(0.85)).manifest.certificate
    mixed = fit_policy(prose, tmp_path / "mixed", FitConfig(0.85)).manifest
    assert mixed.labels == LABELS
    assert mixed.certificate.n_judged == 1_000
    assert mixed.certificate.coverage < pure.coverage
    assert any(note.startswith("50 answers are no label") for note in mixed.certificate.notes)
    found = evaluate(Policy.load(tmp_path / "mixed"), prose)
    assert found.teacher_agreement is not None
    assert found.teacher_agreement < 1


def test_an_update_learns_the_forms_anew(tmp_path: Path) -> None:
    """From all traces, as the folder keeps them: a teacher that changes its manner is answered in the new one."""
    fit_policy(make_traces(400), tmp_path, FitConfig(0.8))
    changed = [replace(t, teacher=f"{t.teacher.title()}!") for t in make_traces(700, seed=1)]
    assert update_policy(changed, tmp_path).replaced
    policy = Policy.load(tmp_path)
    assert policy.answers["Loan!"] == Answer("Loan!")
    assert policy.label_of(Answer("loan")) == "Loan!"


def test_a_field_of_free_text_is_refused_by_name(tmp_path: Path) -> None:
    """The note says which field, and how many values it has."""
    traces = [replace(t, teacher=f'{{"intent": "{t.teacher}", "why": "{t.input}"}}') for t in make_traces(300)]
    result = fit_policy(traces, tmp_path, _TARGET)
    assert result.manifest.certificate.reason == "no answer has a form that can be learned"
    assert any("field 'why' is free text (300 values in 300 answers)" in note for note in result.notes)


def test_several_fields_are_certified_as_one_answer(tmp_path: Path) -> None:
    """The whole object must be equal, whichever way its fields are predicted."""
    traces = [
        replace(t, teacher=f'{{"intent": "{t.teacher}", "asks": {str("can" in t.input.split()).lower()}}}')
        for t in make_traces(1_500)
    ]
    manifest = fit_policy(traces, tmp_path, FitConfig(0.8)).manifest
    policy = Policy.load(tmp_path)
    assert manifest.answers.fields == ("intent", "asks")
    assert policy.answers['{"intent":"loan","asks":true}'] == Answer('{"intent": "loan", "asks": true}')
    assert not manifest.certificate.refused
    assert (evaluate(policy, traces).teacher_agreement or 0) > 0.8


def test_labels_seen_once_are_left_out_and_said_so(tmp_path: Path) -> None:
    """A label with one trace is never answered, and a note says so."""
    traces = [*make_traces(600), Trace("what colour is the moon", "astronomy")]
    manifest = fit_policy(traces, tmp_path, FitConfig(0.8)).manifest
    assert manifest.labels == LABELS
    assert manifest.n_labels == len(LABELS) + 1
    assert any("seen once" in note for note in manifest.certificate.notes)


def test_a_megabyte_of_text_is_accepted_in_traces_and_deferred_in_calls(tmp_path: Path) -> None:
    """Very long inputs neither stop a fit nor are ever answered."""
    huge = "refund " * 150_000
    manifest = fit_policy([*make_traces(600), Trace(huge, "refund")], tmp_path, FitConfig(0.8)).manifest
    assert any("too long" in note for note in manifest.certificate.notes)
    assert Policy.load(tmp_path).decide(huge).reason == Reason.TOO_LONG


def test_weighted_traces_count_by_their_weight(tmp_path: Path) -> None:
    """A weight other than 1 makes the certificate a weighted one, in plain words."""
    traces = [replace(t, weight=50.0) if i % 10 == 0 else t for i, t in enumerate(make_traces(600))]
    certificate = fit_policy(traces, tmp_path, FitConfig(0.8)).manifest.certificate
    assert certificate.n_judged == 600
    assert any("weight" in note for note in certificate.notes)


def test_traces_that_a_live_policy_deferred_are_learned_from_but_not_judged(tmp_path: Path) -> None:
    """They are hard ones by selection; counting them would say that live calls are harder than they are."""
    fair, hard = make_traces(600), make_traces(300, seed=1, noise=0.5)
    deferred = [replace(trace, reason=Reason.UNCERTAIN) for trace in hard]
    observed = [replace(trace, reason=Reason.NO_POLICY) for trace in fair]
    certificate = fit_policy([*observed, *deferred], tmp_path, FitConfig(0.8)).manifest.certificate
    assert certificate.n_judged == 600
    assert certificate.coverage > 0.8
    assert fit_policy([*fair, *hard], tmp_path, FitConfig(0.8)).manifest.certificate.coverage < 0.8


def test_given_embeddings_go_through_the_same_fit(tmp_path: Path) -> None:
    """Embeddings in place of texts: certified, served from vectors, and text is refused without an embedder."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 1_200)
    centres = generator.normal(size=(4, 16))
    matrix = (centres[truth] + 0.4 * generator.normal(size=(1_200, 16))).astype(np.float32)
    traces = [Trace(f"row {i}", f"label{label}") for i, label in enumerate(truth)]
    manifest = fit_policy(traces, tmp_path, _TARGET, matrix).manifest
    policy = Policy.load(tmp_path)
    assert manifest.embedding_dim == 16
    assert policy.decide(matrix[0]).label == f"label{truth[0]}"
    assert policy.decide("text").reason == Reason.NO_EMBEDDING
    assert policy.decide(np.full(16, np.nan)).reason == Reason.NOVEL
    with pytest.raises(ValueError, match="dimension"):
        policy.decide(np.zeros(3, np.float32))
    # Vectors ten times as long are no better than far-off ones: the embedder is not the one of the traces.
    assert {policy.decide(10 * row).reason for row in matrix[:50]} == {Reason.NOVEL}


def test_a_dimension_that_never_varied_says_nothing(tmp_path: Path) -> None:
    """Constant in the traces, a little different in a call: the decision stays what it was."""
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, 900)
    matrix = (generator.normal(size=(4, 8))[truth] + 0.3 * generator.normal(size=(900, 8))).astype(np.float32)
    matrix[:, 3] = 0.5
    traces = [Trace(f"row {i}", f"label{label}") for i, label in enumerate(truth)]
    fit_policy(traces, tmp_path, _TARGET, matrix)
    policy = Policy.load(tmp_path)
    moved = matrix.copy()
    moved[:, 3] += 0.01
    assert [policy.decide(row) for row in moved[:100]] == [policy.decide(row) for row in matrix[:100]]


@pytest.mark.parametrize("matrix", [np.zeros((3, 4)), np.zeros(400), np.full((400, 2), np.nan), np.zeros((400, 0))])
def test_embeddings_that_do_not_fit_the_traces_are_an_error(tmp_path: Path, matrix: np.ndarray) -> None:
    """Wrong shape or values stop the fit and leave no policy behind."""
    with pytest.raises(FitError, match="embeddings"):
        fit_policy(make_traces(400), tmp_path, _TARGET, matrix)
    assert read_version(tmp_path) is None


def test_an_update_adds_traces_and_replaces_the_version(tmp_path: Path) -> None:
    """Old and new traces are fitted together, under the settings of the served version."""
    first = fit_policy(make_traces(400), tmp_path, FitConfig(0.85, seed=3)).manifest
    result = update_policy(make_traces(800, seed=5), tmp_path)
    assert result.replaced
    assert result.manifest.n_traces == 1_200
    assert result.manifest.certificate.target == 0.85
    assert result.manifest.settings["seed"] == 3
    assert result.manifest.certificate.coverage > first.certificate.coverage
    assert Policy.load(tmp_path).version == result.manifest.version != first.version


def test_a_refused_update_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """Bad new traces change nothing, and leave nothing behind to spoil the next update."""
    first = fit_policy(make_traces(500), tmp_path, _TARGET).manifest
    files = sorted(tmp_path.rglob("*"))
    result = update_policy(make_traces(900, seed=9, noise=1.0), tmp_path)
    assert not result.replaced
    assert result.manifest.certificate.refused
    assert Policy.load(tmp_path).version == first.version
    assert sorted(tmp_path.rglob("*")) == files
    assert update_policy(make_traces(100, seed=11), tmp_path).manifest.n_traces == 600


def test_an_update_keeps_every_setting_of_the_fit(tmp_path: Path) -> None:
    """Also those that no option of the command shows."""
    asked = FitConfig(0.80, 0.95, "static", "iid", "refit", 4, (0.8, 0.9), 0.02, 0.05)
    fit_policy(make_traces(500), tmp_path, asked)
    updated = update_policy(make_traces(100, seed=3), tmp_path).manifest.settings
    assert FitConfig(**{**updated, "frontier_targets": tuple(updated["frontier_targets"])}) == asked


def test_the_same_file_again_adds_nothing(tmp_path: Path) -> None:
    """Traces without ids are known by what they say; a second update with them is no second evidence."""
    traces = [replace(trace, id=None) for trace in make_traces(500)]
    fit_policy(traces, tmp_path, FitConfig(0.8))
    result = update_policy(traces, tmp_path)
    assert result.manifest.n_traces == 500
    assert any("0 new traces" in note for note in result.notes)


def test_copies_of_a_file_prove_no_more_than_the_file(tmp_path: Path) -> None:
    """Ten times the same lines: as many labels right out of fold, and a promise that still holds on new calls."""
    traces = [replace(trace, id=None) for trace in make_traces(300, noise=0.03)]
    once = fit_policy(traces, tmp_path / "once", FitConfig(0.95)).manifest.certificate
    manifest = fit_policy(traces * 10, tmp_path / "ten", FitConfig(0.95)).manifest
    assert manifest.certificate.refused == once.refused
    assert manifest.certificate.coverage <= once.coverage + 0.1
    assert any("2700 traces repeat" in note for note in manifest.certificate.notes)


def test_a_teacher_that_contradicts_itself_is_named(tmp_path: Path) -> None:
    """The same input under two labels is counted in a note."""
    traces = make_traces(400)
    odd = [replace(trace, id=None, teacher="loan") for trace in traces[:10] if trace.teacher != "loan"]
    notes = fit_policy([*traces, *odd], tmp_path, FitConfig(0.8)).manifest.certificate.notes
    assert any(f"{len(odd)} inputs were given more than one label" in note for note in notes)


def test_prose_on_a_repeated_input_contradicts_itself_once(tmp_path: Path) -> None:
    """No two answers of kind other are alike, and an input is counted once; what is not read contradicts nothing."""
    prose = [Trace("explain my fees", f"well {i}", kind=AnswerKind.OTHER) for i in range(10)]
    long = [Trace("word " * 5_000, "loan") for _ in range(3)]
    notes = fit_policy([*make_traces(400), *prose, *long], tmp_path, FitConfig(0.8)).notes
    assert [note for note in notes if "contradicts itself" in note] == [
        "the teacher contradicts itself: 1 inputs were given more than one label"
    ]


def test_a_protected_word_is_every_label_that_it_may_mean(tmp_path: Path) -> None:
    """By name, text, tool, or a field's value; a note lists them, and a word that means none is an error."""
    traces = [
        replace(t, teacher=f'{{"intent": "{t.teacher}", "urgent": {str("now" in t.input).lower()}}}')
        if i % 4
        else replace(t, kind=AnswerKind.TOOL, arguments="{}")
        for i, t in enumerate(make_traces(600))
    ]
    result = fit_policy(traces, tmp_path, FitConfig(0.6, protect=("loan",)))
    expected = [label for label in result.manifest.labels if "loan" in label]
    assert len(expected) > 1
    assert "loan" in expected
    note = next(note for note in result.notes if note.startswith("protected 'loan' means"))
    assert all(repr(label) in note for label in expected)
    assert not result.manifest.certificate.refused
    assert set(result.manifest.protected) == set(expected)
    with pytest.raises(FitError, match="no trace has the label 'loans'"):
        fit_policy(traces, tmp_path, FitConfig(0.6, protect=("loans",)))


def test_an_update_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    """There must be a policy before it can be updated."""
    with pytest.raises(PolicyMissing, match="tracer fit"):
        update_policy(make_traces(50), tmp_path / "nothing")


def test_a_second_fit_into_the_same_folder_is_turned_away(tmp_path: Path) -> None:
    """Two writers at once would lose one's traces, so the second is an error while the first runs."""
    fit_policy(make_traces(300), tmp_path, FitConfig(0.8))
    blocked: list[str] = []

    def intrude(step: str, done: float) -> None:
        if step == "gate" and done:
            with pytest.raises(ArtifactError) as caught:
                fit_policy(make_traces(300), tmp_path, FitConfig(0.8))
            blocked.append(str(caught.value))

    fit_policy(make_traces(300), tmp_path, FitConfig(0.8), progress=intrude)
    assert "another fit or update" in blocked[0]


@pytest.mark.parametrize(
    "bad",
    [
        {"target_teacher_agreement": 1.0},
        {"target_teacher_agreement": 0.2},
        {"confidence": 0.0},
        {"mode": "loose"},
        {"assume": "anything"},
        {"features": "lexical,magic"},
        {"features": "static,transformer:"},
        {"features": "auto,static"},
        {"surrogates": ("joint", "joint")},
        {"engine": "mainframe"},
        {"jobs": 0},
        {"seed": -1},
        {"latency_budget_us": 0.0},
        {"features": "static,static"},
        {"guard_budget": 1.5},
        {"min_deploy_coverage": -0.1},
        {"frontier_targets": (2.0,)},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, object]) -> None:
    """Each setting is checked, and the message names it."""
    with pytest.raises(FitError, match=next(iter(bad)).split("_", maxsplit=1)[0]):
        FitConfig(**bad)  # type: ignore[arg-type]


def test_min_deploy_coverage_and_guard_budget_change_the_outcome(tmp_path: Path) -> None:
    """Asking for more coverage than there is refuses; a wider guard turns more away."""
    traces = make_traces(500)
    refused = fit_policy(traces, tmp_path / "a", FitConfig(0.9, min_deploy_coverage=0.999)).manifest.certificate
    assert refused.refused
    narrow = fit_policy(traces, tmp_path / "b", FitConfig(0.8, guard_budget=0.0)).manifest
    wide = fit_policy(traces, tmp_path / "c", FitConfig(0.8, guard_budget=0.2)).manifest
    assert narrow.certificate.coverage > wide.certificate.coverage


def test_static_features_alone_are_a_policy_too(tmp_path: Path) -> None:
    """`--features static` leaves the lexical block out of the graph and still decides text."""
    manifest = fit_policy(make_traces(600), tmp_path, FitConfig(0.8, features="static")).manifest
    assert manifest.features["n_lexical"] == 0
    assert Policy.load(tmp_path).decide("my card was stolen please block it").label == "card_lost"


def test_two_labels_are_enough(tmp_path: Path) -> None:
    """A yes-or-no decision is the smallest task there is."""
    traces = [t for t in make_traces(3_000) if t.teacher in {"refund", "delivery"}]
    manifest = fit_policy(traces, tmp_path, FitConfig(0.9)).manifest
    assert not manifest.certificate.refused
    assert manifest.labels == ["delivery", "refund"]


def test_banking77_reaches_its_bar(tmp_path: Path) -> None:
    """On real data: coverage at least 0.90 with agreement at least 0.95 on traffic the fit never saw."""
    traces, traffic = dataset("banking77")
    fit = fit_policy(traces, tmp_path, FitConfig(0.95))
    result = evaluate(Policy.load(tmp_path), traffic)
    assert fit.seconds <= 60
    assert result.coverage >= 0.90
    assert result.teacher_agreement is not None
    assert result.teacher_agreement >= 0.95


def test_saying_it_twenty_times_makes_nothing_surer(tmp_path: Path) -> None:
    """A text repeated to a length that no trace has is no more certain than a text of usual length."""
    fit_policy(make_traces(900), tmp_path, FitConfig(0.9))
    policy = Policy.load(tmp_path)
    texts = ["the", "i love my dog so much", *(trace.input for trace in make_traces(200, seed=21, blur=0.6))]
    once, often = ([policy.decide(" ".join([text] * n)) for text in texts] for n in (1, 20))
    assert sum(decision.handled for decision in often) <= 1.1 * sum(decision.handled for decision in once) + 2


def test_a_refused_fit_over_a_certified_policy_says_so(tmp_path: Path) -> None:
    """The folder is the user's to replace, in plain words."""
    fit_policy(make_traces(500), tmp_path, _TARGET)
    notes = fit_policy(make_traces(300, noise=1.0), tmp_path, _TARGET).notes
    assert any("which was certified" in note for note in notes)
