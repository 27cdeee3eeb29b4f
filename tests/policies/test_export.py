"""The exported graph decides as the fitted model does, and a graph that does not is turned away."""

from dataclasses import replace

import numpy as np
import pytest

from policies.errors import ExportError, PolicyDamaged
from policies.export import build_graph, check_graph
from policies.fitting import silent
from policies.learning import Learned, learn
from policies.session import open_session, run_session
from policies.settings import FitConfig
from tests.traces_maker import make_traces


@pytest.fixture(scope="module", params=["lexical,static", "static", "given"])
def learned(request: pytest.FixtureRequest) -> Learned:
    """A fit before the gate, for each kind of features."""
    traces = make_traces(500)
    given = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32) if request.param == "given" else None
    config = FitConfig(0.8) if request.param == "given" else FitConfig(0.8, features=request.param)
    return learn(traces, config, given, silent)


def test_graph_and_model_give_the_same_numbers(learned: Learned) -> None:
    """Label, accept score and guard value agree on every trace, to float32's precision."""
    assert learned.fitted is not None
    session = open_session(build_graph(learned.fitted))
    scores = learned.served_scores()
    labels = scores.logits.argmax(axis=1)
    accept = learned.fitted.acceptor.accept_scores(scores)
    guard = learned.fitted.guard.values(scores)
    for i, row in enumerate(learned.graph_inputs()):
        label, score, value = run_session(session, row)
        assert label == labels[i]
        assert score == pytest.approx(accept[i], abs=1e-3)
        assert value == pytest.approx(guard[i], abs=1e-3)


def test_a_graph_of_another_model_is_noticed(learned: Learned) -> None:
    """The check compares decisions, so a graph with other weights does not pass."""
    assert learned.fitted is not None
    surrogate = learned.fitted.surrogate
    other = replace(
        learned.fitted, surrogate=replace(surrogate, bias=surrogate.bias[::-1].copy(), dense=-surrogate.dense)
    )
    with pytest.raises(ExportError, match="row"):
        check_graph(build_graph(other), learned.graph_inputs(), learned.fitted, learned.served_scores(), 0.5)


def test_bytes_that_are_no_graph_are_damage() -> None:
    """onnxruntime's complaint becomes ours."""
    with pytest.raises(PolicyDamaged, match=r"model\.onnx"):
        open_session(b"not a graph")
