"""The exported graph decides as the fitted model does, and a graph that does not is turned away."""

from dataclasses import replace

import numpy as np
import pytest

from policies.acceptor import Table, describe
from policies.errors import ExportError, PolicyDamaged
from policies.export import Fitted, build_graph, check_graphs
from policies.learning import Learned, learn
from policies.session import open_session, run_fully, run_session
from policies.settings import FitConfig
from policies.surrogates import SoftmaxModel, softmax
from tests.traces_maker import make_traces


@pytest.fixture(scope="module", params=["lexical,static", "static", "lexical", "given"])
def learned(request: pytest.FixtureRequest) -> Learned:
    """A fit before the gate, for each kind of features."""
    traces = make_traces(500)
    given = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32) if request.param == "given" else None
    return learn(traces, FitConfig(0.8), request.param, given, lambda *_: None)


def _fitted(learned: Learned) -> tuple[Fitted, Table, np.ndarray]:
    """The one stage, its table of all traces, and its logit gaps."""
    assert learned.reading is not None
    stage, found = learned.reading.stages[0], learned.measurements[0].stages[0].heads[0]
    scores = found.models[0].scores(stage.features)
    ordered = np.sort(scores.logits, axis=1)
    fitted = Fitted(stage.reader, found.models[0], found.acceptor, found.guard)
    return fitted, describe(scores), ordered[:, -1] - ordered[:, -2]


def _inputs(learned: Learned) -> list[dict[str, np.ndarray]]:
    assert learned.reading is not None
    return [dict(learned.reading.graph_input(i, learned.reading.stages[0])) for i in range(500)]


def test_graph_and_model_give_the_same_numbers(learned: Learned) -> None:
    """Label, accept score and guard value agree on every trace, to float32's precision."""
    fitted, table, _ = _fitted(learned)
    session = open_session(build_graph(fitted))
    accept, guard = fitted.acceptor.accept_scores(table), fitted.guard.values(table)
    for i, row in enumerate(_inputs(learned)):
        label, score, value = run_session(session, row)
        assert label == table.predicted[i]
        assert score == pytest.approx(accept[i], abs=1e-3)
        assert value == pytest.approx(guard[i], abs=1e-3)


def test_the_graph_gives_the_surrogates_softmax_to_who_asks(learned: Learned) -> None:
    """The probabilities of all labels are those of the fitted model's logits, and the other outputs stay the same."""
    fitted, _, _ = _fitted(learned)
    assert learned.reading is not None
    expected = softmax(fitted.surrogate.scores(learned.reading.stages[0].features).logits[:, None])[:, 0]
    session = open_session(build_graph(fitted))
    for i, row in enumerate(_inputs(learned)):
        *scored, found = run_fully(session, row)
        assert tuple(scored) == run_session(session, row)
        np.testing.assert_allclose(found, expected[i], atol=1e-4)


def test_a_graph_of_another_model_is_noticed(learned: Learned) -> None:
    """The check compares decisions, so a graph with other weights does not pass."""
    fitted, table, gaps = _fitted(learned)
    surrogate = fitted.surrogate
    assert isinstance(surrogate, SoftmaxModel)
    lexical = None if surrogate.lexical is None else -surrogate.lexical
    other = replace(fitted, surrogate=replace(surrogate, dense=-surrogate.dense, lexical=lexical))
    check_graphs([build_graph(fitted)], _inputs(learned), [fitted], [(table, gaps)], [0.5, 0.9])
    with pytest.raises(ExportError, match="row"):
        check_graphs([build_graph(other)], _inputs(learned), [fitted], [(table, gaps)], [0.5])


def test_bytes_that_are_no_graph_are_damage() -> None:
    """onnxruntime's complaint becomes ours."""
    with pytest.raises(PolicyDamaged, match=r"model\.onnx"):
        open_session(b"not a graph")
