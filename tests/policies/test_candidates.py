"""Every candidate surrogate can be fitted, merged, exported and chosen, and says plainly where it cannot work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from policies.acceptor import describe, fit_acceptor
from policies.artifact import read_manifest
from policies.blocks import Features, Floats
from policies.candidates import Surrogate, fit_candidate, merge_models
from policies.errors import FitError
from policies.evaluation import evaluate
from policies.export import Fitted, build_graph
from policies.fitting import FitResult, fit_policy
from policies.guard import fit_guard
from policies.policy import Policy
from policies.reading import read_texts
from policies.session import open_session, run_session
from policies.settings import CANDIDATES, FeatureSpec, FitConfig
from policies.surrogates import Labels, softmax
from tests.traces_maker import LABELS, make_traces

_CONFIG = FitConfig(target_teacher_agreement=0.80, jobs=1)
_LABELS = 5


def _blobs(n: int, seed: int = 0) -> tuple[Features, Labels]:
    """Rows around the centres of five labels, as one dense block."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, _LABELS, n)
    centres = np.random.default_rng(99).normal(size=(_LABELS, 20))
    dense = centres[labels] + generator.normal(size=(n, 20))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return Features(None, dense.astype(np.float32), (20,), np.zeros(n, np.float32)), labels


def _fold_models(name: str, missing: int | None = None) -> list[Surrogate]:
    """Three models of different rows; the last has no row of the label `missing`."""
    features, labels = _blobs(900)
    rows = [np.arange(start, 900, 3) for start in range(3)]
    if missing is not None:
        rows[-1] = rows[-1][labels[rows[-1]] != missing]
    return [fit_candidate(name, features.take(part), labels[part], _LABELS, seed) for seed, part in enumerate(rows)]


def _probabilities(model: Surrogate, features: Features) -> Floats:
    return softmax(model.scores(features).logits)


def _report(result: FitResult) -> dict[str, Any]:
    path = Path(result.artifact_dir) / result.manifest.files["report"].path
    return dict(orjson.loads(path.read_bytes()))


@pytest.mark.parametrize("mode", ["strict", "refit"])
@pytest.mark.parametrize("name", CANDIDATES)
def test_each_candidate_is_certified_and_answers_new_calls(tmp_path: Path, name: str, mode: str) -> None:
    """Fitted alone on an easy task it is exported, loads, and handles new calls about as well as promised."""
    result = fit_policy(make_traces(900), tmp_path / "policy", replace(_CONFIG, surrogates=(name,), mode=mode))
    assert not result.manifest.certificate.refused, result.manifest.certificate.reason
    found = evaluate(Policy.load(tmp_path / "policy"), make_traces(600, seed=1))
    assert found.coverage > 0.3
    assert found.teacher_agreement is not None
    assert found.teacher_agreement > 0.75


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_seed_decides(tmp_path: Path, name: str) -> None:
    """The same seed gives the same graph, another seed another one."""
    traces = make_traces(400)
    graphs = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = replace(_CONFIG, target_teacher_agreement=0.6, surrogates=(name,), seed=seed)
        graphs.append(fit_policy(traces, tmp_path / folder, config).manifest.files["model"].sha256)
    assert graphs[0] == graphs[1] != graphs[2]


def test_the_best_of_several_is_served_and_all_are_reported(tmp_path: Path) -> None:
    """The report lists name, agreement and seconds of each; the graph is that of the one that agrees most."""
    traces = make_traces(600)
    several = fit_policy(traces, tmp_path / "all", replace(_CONFIG, surrogates=CANDIDATES))
    rows = _report(several)["candidates"]
    assert [row["name"] for row in rows] == list(CANDIDATES)
    assert all(0.5 < row["agreement"] <= 1 and row["seconds"] > 0 for row in rows)
    best = max(rows, key=lambda row: row["agreement"])["name"]
    alone = fit_policy(traces, tmp_path / "best", replace(_CONFIG, surrogates=(best,)))
    served = several.manifest.files["model"].sha256
    assert served == alone.manifest.files["model"].sha256
    assert read_manifest(tmp_path / "all").settings["surrogates"] == list(CANDIDATES)


@pytest.mark.parametrize("name", ["logreg", "sgd", "mlp", "joint"])
def test_merged_logits_are_the_mean_of_the_models(name: str) -> None:
    """One model says what the fold models say on average, row by row."""
    models = _fold_models(name)
    fresh, _ = _blobs(200, seed=1)
    mean = np.mean([model.scores(fresh).logits for model in models], axis=0)
    np.testing.assert_allclose(merge_models(models).scores(fresh).logits, mean, atol=2e-4)


def test_merged_forests_say_the_mean_probability() -> None:
    """So far as probabilities are above the floor, which is drawn after the mean."""
    models = _fold_models("trees")
    fresh, _ = _blobs(200, seed=1)
    merged = merge_models(models)
    mean = np.mean([model.forest.probabilities(fresh.dense) for model in models], axis=0)  # type: ignore[union-attr]
    np.testing.assert_allclose(merged.forest.probabilities(fresh.dense), mean, atol=1e-6)  # type: ignore[union-attr]
    np.testing.assert_allclose(_probabilities(merged, fresh), mean, atol=_LABELS * 1e-3)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_fold_without_a_label_keeps_the_others_in_place(name: str) -> None:
    """Its model says the other labels where they belong, and the merged model all of them."""
    models = _fold_models(name, missing=2)
    fresh, truth = _blobs(400, seed=1)
    other = truth != 2
    assert (models[-1].scores(fresh).logits.argmax(axis=1)[other] == truth[other]).mean() > 0.85
    said = merge_models(models).scores(fresh).logits.argmax(axis=1)
    assert (said == truth).mean() > 0.85
    assert (said[truth == 2] == 2).mean() > 0.6


@pytest.mark.parametrize("present", [[3], [1, 3]])
@pytest.mark.parametrize("name", CANDIDATES)
def test_a_fold_of_one_or_two_labels_is_no_special_case(name: str, present: list[int]) -> None:
    """Scores are finite, of full width, and right where they can be; scikit-learn's models say only what was seen."""
    features, labels = _blobs(300)
    rows = np.flatnonzero(np.isin(labels, present))
    model = fit_candidate(name, features.take(rows), labels[rows], _LABELS, 0)
    scores = model.scores(features)
    assert scores.logits.shape == scores.similarity.shape == (300, _LABELS)
    assert np.isfinite(scores.views).all()
    assert name == "joint" or set(scores.logits.argmax(axis=1).tolist()) == set(present)
    assert (scores.logits[rows].argmax(axis=1) == labels[rows]).mean() > 0.9


@pytest.mark.parametrize("name", CANDIDATES)
def test_two_labels_are_decided_as_many_are(tmp_path: Path, name: str) -> None:
    """scikit-learn keeps one column for two labels; the policy has both."""
    traces = [trace for trace in make_traces(1_600, blur=0.1) if trace.teacher in ("loan", "password")]
    result = fit_policy(traces, tmp_path / "policy", replace(_CONFIG, surrogates=(name,)))
    assert result.manifest.labels == ["loan", "password"]
    assert not result.manifest.certificate.refused, result.manifest.certificate.reason
    policy = Policy.load(tmp_path / "policy")
    answers = [(policy.decide(trace.input), trace.teacher) for trace in traces]
    assert {decision.label for decision, _ in answers if decision.handled} == {"loan", "password"}
    assert np.mean([decision.label == truth for decision, truth in answers if decision.handled]) > 0.9


@pytest.mark.parametrize("name", CANDIDATES)
def test_embeddings_of_the_user_serve_every_candidate(tmp_path: Path, name: str) -> None:
    """Also where they are far from unit norm."""
    features, labels = _blobs(600)
    traces = [replace(trace, teacher=f"label {label}") for trace, label in zip(make_traces(600), labels, strict=True)]
    embeddings = (50 * features.dense + 7).astype(np.float32)
    result = fit_policy(traces, tmp_path / "policy", replace(_CONFIG, surrogates=(name,)), embeddings)
    assert not result.manifest.certificate.refused, result.manifest.certificate.reason
    policy = Policy.load(tmp_path / "policy")
    decisions = [policy.decide(row) for row in embeddings[:200]]
    assert np.mean([d.label == t.teacher for d, t in zip(decisions, traces, strict=False) if d.handled]) > 0.75


@pytest.mark.parametrize("name", ["mlp", "trees"])
def test_a_candidate_for_dense_blocks_refuses_lexical_features_alone(tmp_path: Path, name: str) -> None:
    """One clear line that names the candidate and says what to add."""
    with pytest.raises(FitError, match=rf"'{name}' reads dense blocks alone.*add static"):
        fit_policy(make_traces(200), tmp_path / "policy", replace(_CONFIG, surrogates=(name,), features="lexical"))


@pytest.mark.parametrize("name", ["logreg", "sgd"])
@pytest.mark.parametrize("features", ["lexical", "static"])
def test_a_linear_candidate_works_on_either_kind_of_block(tmp_path: Path, name: str, features: str) -> None:
    """Lexical or word vectors alone are enough for it."""
    config = replace(_CONFIG, target_teacher_agreement=0.7, surrogates=(name,), features=features)
    result = fit_policy(make_traces(700), tmp_path / "policy", config)
    assert not result.manifest.certificate.refused, result.manifest.certificate.reason


@pytest.mark.parametrize("name", ["mlp", "trees"])
def test_several_dense_blocks_are_read_side_by_side(name: str) -> None:
    """Two blocks, as word vectors and an encoder's, are one input to the model."""
    features, labels = _blobs(400)
    both = features.beside(features.dense[:, ::-1].copy())
    scores = fit_candidate(name, both, labels, _LABELS, 0).scores(both)
    assert len(scores.parts) == 1
    assert (scores.logits.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_graph_reads_word_vectors_and_an_encoder_together(name: str) -> None:
    """Label, accept score and guard value of the graph are the model's where a text has both dense blocks."""
    traces = make_traces(300)
    reading = read_texts(traces, FeatureSpec.parse("static"), True, lambda _: None)
    tokens, words = reading.tokens, reading.words
    assert tokens is not None
    assert words is not None
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    features = reading.stages[0].features.beside(vectors)
    labels = np.array([LABELS.index(trace.teacher) for trace in traces])
    rows = np.arange(300)
    parts = [rows[start::2] for start in range(2)]
    model = merge_models([fit_candidate(name, features.take(part), labels[part], len(LABELS), 0) for part in parts])
    table = describe(model.scores(features))
    acceptor, _ = fit_acceptor(table, table.predicted == labels, rows, len(LABELS), 0)
    guard = fit_guard(table, 0.01)
    reader = replace(reading.stages[0].reader, vector_size=16)
    session = open_session(build_graph(Fitted(reader, model, acceptor, guard)))
    for i in range(50):
        inputs = {"ids": np.array(tokens.row(i), np.int64), "words": words, "vector": vectors[i]}
        label, score, value = run_session(session, inputs)
        assert label == table.predicted[i]
        assert score == pytest.approx(acceptor.accept_scores(table)[i], abs=2e-3)
        assert value == pytest.approx(guard.values(table)[i], abs=2e-3)


def test_a_certain_forest_has_more_energy_than_an_uncertain_one() -> None:
    """Centred logits keep a signal for the guard: log-sum-exp rises with how far the likely labels stand out."""
    features, labels = _blobs(600)
    model = fit_candidate("trees", features, labels, _LABELS, 0)
    energy = _log_sum_exp(model.scores(features).logits)
    top = _probabilities(model, features).max(axis=1)
    assert energy[top > 0.9].mean() > energy[top < 0.6].mean() + 0.5


def _log_sum_exp(logits: Floats) -> Floats:
    return np.asarray(np.log(np.exp(logits).sum(axis=1)))


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x[::-1].copy()])
def test_shares_in_a_forest_add_up_to_one(change: Callable[[Floats], Floats]) -> None:
    """Every row ends in a leaf of every tree."""
    features, labels = _blobs(300)
    model = fit_candidate("trees", features, labels, _LABELS, 0)
    sums = model.forest.probabilities(change(features.dense)).sum(axis=1)  # type: ignore[union-attr]
    np.testing.assert_allclose(sums, 1, atol=1e-5)
