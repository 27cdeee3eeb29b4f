"""The acceptor may ask the nearest traces: the same in the fit and in the graph, and only where there are any."""

from pathlib import Path

import numpy as np
import pytest

from policies.errors import FitError
from policies.evaluation import evaluate
from policies.fitting import fit_policy, update_policy
from policies.neighbours import MOST, Neighbours, choose_neighbours
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Trace
from tests.encoder_maker import make_encoder
from tests.traces_maker import make_traces


def test_the_columns_are_share_mean_and_largest_cosine() -> None:
    """Against a computation by hand, for rows of any length."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 6)).astype(np.float32)
    labels = generator.integers(0, 3, 50)
    asked = generator.normal(size=(4, 6)).astype(np.float32) * 7
    found = choose_neighbours(vectors, labels, 0).columns(asked, np.array([0, 1, 2, 0]))
    cosines = asked @ vectors.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)
    for i, label in enumerate([0, 1, 2, 0]):
        nearest = np.argsort(-cosines[i])[:10]
        expected = [(labels[nearest] == label).mean(), cosines[i][nearest].mean(), cosines[i].max()]
        assert found[i] == pytest.approx(expected, abs=1e-5)


def test_too_many_traces_are_sampled() -> None:
    """A decision never reads more than the limit, and the seed decides which."""
    dense, labels = np.random.default_rng(0).normal(size=(MOST + 50, 2)).astype(np.float32), np.arange(MOST + 50)
    one, other = choose_neighbours(dense, labels, 0), choose_neighbours(dense, labels, 1)
    assert isinstance(one, Neighbours)
    assert len(one.labels) == MOST
    assert (one.labels != other.labels).any()


@pytest.mark.parametrize("features", ["static", "lexical,static", "encoder"])
def test_a_policy_with_neighbours_is_fitted_checked_and_served(tmp_path: Path, features: str) -> None:
    """Every trace is run through the graph before anything is written; live calls keep the target."""
    if features == "encoder":
        features = f"lexical,static,transformer:{make_encoder(tmp_path / 'encoder')}"
    config = FitConfig(0.85, features=features, neighbours=True)
    manifest = fit_policy(make_traces(900, blur=0.1), tmp_path / "policy", config).manifest
    assert not manifest.certificate.refused
    assert manifest.settings["neighbours"]
    result = evaluate(Policy.load(tmp_path / "policy"), make_traces(800, seed=7, blur=0.1))
    assert result.teacher_agreement is not None
    assert result.teacher_agreement >= 0.85
    assert update_policy(make_traces(50, seed=3), tmp_path / "policy").manifest.settings["neighbours"]


def test_given_embeddings_have_neighbours_too(tmp_path: Path) -> None:
    """Also where the rows are scaled and of any length."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 900)
    matrix = (generator.normal(size=(4, 8))[truth] + 0.4 * generator.normal(size=(900, 8))).astype(np.float32)
    traces = [Trace(f"row {i}", f"label{label}") for i, label in enumerate(truth)]
    config = FitConfig(0.85, neighbours=True)
    assert not fit_policy(traces, tmp_path, config, matrix).manifest.certificate.refused
    assert Policy.load(tmp_path).decide(matrix[0]).accept_score > 0


@pytest.mark.parametrize("config", [{"features": "lexical"}, {"surrogates": ("trees",)}])
def test_neighbours_where_there_can_be_none_are_one_clear_error(tmp_path: Path, config: dict[str, object]) -> None:
    """Without a dense block nothing is near; trees do not remember rows."""
    with pytest.raises(FitError, match="neighbours need"):
        fit_policy(make_traces(200), tmp_path, FitConfig(0.8, neighbours=True, **config))  # type: ignore[arg-type]
