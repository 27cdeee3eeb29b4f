"""The nodes from views to a decision give what `describe`, the acceptor and the guard give, also at the edges."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from policies.acceptor import Acceptor, Table, describe, view_width
from policies.decision_graph import judge, read_views
from policies.graph import FLOAT, INT64, GraphWriter
from policies.guard import Guard
from policies.session import open_session, run_session
from policies.surrogates import Scores

_ROWS = 300


def _scores(n_labels: int, n_parts: int) -> Scores:
    """Rows of every kind: sure and unsure ones, ties at the top, parts that say nothing, and rivals far ahead."""
    generator = np.random.default_rng(n_labels)
    parts = generator.normal(size=(n_parts, _ROWS, n_labels)).astype(np.float32) * 2
    parts[0, :60] *= 20  # what the others have is nothing to float32
    parts[0, 60:90] = 0
    parts[:, 90:120, 1] = parts[:, 90:120, 0]
    parts[:, 120:150] = np.round(parts[:, 120:150])  # ties anywhere
    parts[:, 150:160] = 0
    similarity = (generator.normal(size=(_ROWS, n_labels)) / 4).astype(np.float32)
    similarity[200:210] = 0
    return Scores(tuple(parts), similarity, np.log1p(np.arange(_ROWS)).astype(np.float32))


def _judges(table: Table, n_labels: int) -> tuple[Acceptor, Guard]:
    """Weights that let every column count, and bounds that some rows break."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=table.columns.shape[1] + 1)
    reliability = generator.normal(size=n_labels).astype(np.float32)
    energy = float(table.energy.mean())
    acceptor = Acceptor(weights, 0.3, reliability, energy, 0.7, float(np.log(4)), float(np.log(200)))
    return acceptor, Guard(energy, 0.8, 0.1, 0.3, -0.4, 2.5)


def _session(n_views: int, n_labels: int, acceptor: Acceptor, guard: Guard) -> onnxruntime.InferenceSession:
    writer = GraphWriter()
    # A node of its own: outputs are renamed where they are made.
    read = read_views(writer, writer.node("Identity", "views"), n_views, n_labels)
    decision = judge(writer, read, acceptor, guard, tokens=writer.node("Identity", "tokens"))
    inputs = [
        helper.make_tensor_value_info("views", FLOAT, [n_views, n_labels]),
        helper.make_tensor_value_info("tokens", INT64, [1]),
    ]
    outputs = {
        "decision": (decision, FLOAT, [1, 3]),
        "probabilities": (read.probabilities, FLOAT, [n_views, n_labels]),
    }
    return open_session(writer.model(inputs, outputs).SerializeToString())


@pytest.mark.parametrize("n_parts", [1, 2, 3])
@pytest.mark.parametrize("n_labels", [2, 3, 20])
def test_nodes_and_models_give_the_same(n_labels: int, n_parts: int) -> None:
    """Label, log-odds and guard value, with two labels and with many, one view of the logits and one a part."""
    scores = _scores(n_labels, n_parts)
    table = describe(scores)
    acceptor, guard = _judges(table, n_labels)
    odds, inside = acceptor.log_odds(table), guard.values(table)
    session = _session(scores.views.shape[1], n_labels, acceptor, guard)
    for i, views in enumerate(scores.views):
        label, score, value = run_session(session, {"views": views, "tokens": np.array([i], np.int64)})
        assert label == table.predicted[i]
        assert value == pytest.approx(inside[i], abs=1e-3)
        if abs(odds[i]) > 25:  # a probability of double precision tells no more
            assert score == pytest.approx(float(odds[i] > 0), abs=1e-9)
            continue
        # Near 1 float32 knows a probability to a twentieth of what it leaves, in whatever order it is computed.
        noise = 0.1 * np.abs(acceptor.weights).sum() if i < 60 else 2e-3
        assert np.log(score / (1 - score)) == pytest.approx(odds[i], abs=noise)


@pytest.mark.parametrize("column", range(view_width(5)))
def test_each_accept_feature_counts_by_itself(column: int) -> None:
    """With one weight alone no other column hides an error, in any of the views."""
    scores = _scores(5, 2)
    table = describe(scores)
    acceptor, guard = _judges(table, 5)
    for view in range(scores.views.shape[1]):
        weights = np.zeros_like(acceptor.weights)
        weights[view * view_width(5) + column] = 1
        one = replace(acceptor, weights=weights, energy_mean=-1e3)
        session = _session(scores.views.shape[1], 5, one, guard)
        odds = one.log_odds(table)
        for i in range(60, _ROWS, 3):
            score = run_session(session, {"views": scores.views[i], "tokens": np.array([i], np.int64)})[1]
            assert np.log(score / (1 - score)) == pytest.approx(odds[i], abs=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_decision(value: float) -> None:
    """One entry that is not finite leaves no label, no score and no guard value, so that nothing is handled."""
    scores = _scores(5, 2)
    acceptor, guard = _judges(describe(scores), 5)
    session = _session(scores.views.shape[1], 5, acceptor, guard)
    for view in range(scores.views.shape[1]):
        views = scores.views[250].copy()
        views[view, 3] = value
        found = run_session(session, {"views": views, "tokens": np.array([5], np.int64)})
        assert found[0] == -1
        assert np.isnan(found[1:]).all()
