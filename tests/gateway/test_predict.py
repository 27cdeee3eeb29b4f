"""The decision server's calls, as code written for `tracer-llm` makes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from policies.fitting import fit_policy
from policies.settings import FitConfig
from policies.types import Trace
from tests.serving import ThreadedGateway, make_settings
from tests.traces_maker import make_traces

DIMENSIONS = 6


@pytest.fixture(scope="module")
def embedding_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that reads embeddings: four well-separated labels."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 600)
    noise = generator.normal(size=(600, DIMENSIONS)) / 4
    vectors = np.asarray(np.eye(DIMENSIONS)[labels] * 3 + noise, np.float32)
    traces = [Trace(f"text {i}", f"label {label}") for i, label in enumerate(labels)]
    folder = tmp_path_factory.mktemp("embeddings") / "policy"
    fit_policy(traces, folder, FitConfig(target_teacher_agreement=0.9), vectors)
    return folder


@pytest.fixture
def gateway(tmp_path: Path, policy_folder: Path, embedding_folder: Path) -> Iterator[ThreadedGateway]:
    """Two projects, of which `texts` is the default one."""
    projects = {
        "texts": {"policy": str(policy_folder)},
        "vectors": {"policy": str(embedding_folder)},
        "new": {"policy": str(tmp_path / "absent")},
    }
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects, "default_project": "texts"})) as running:
        yield running


def _vector(label: int) -> list[float]:
    return [3.0 if i == label else 0.0 for i in range(DIMENSIONS)]


def _post(gateway: ThreadedGateway, path: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}{path}", json=fields)


def test_a_text_is_decided_on(gateway: ThreadedGateway, handled_text: str, deferred_text: str) -> None:
    """`{"input"}` -> label, decision, accept_score, stage."""
    answer = _post(gateway, "/predict", input=handled_text)
    found = answer.json()
    assert set(found) == {"label", "decision", "accept_score", "stage"}
    assert (found["decision"], found["stage"]) == ("handled", 0)
    assert answer.headers["x-tracer-project"] == "texts"
    deferred = _post(gateway, "/predict", input=deferred_text).json()
    assert (deferred["label"], deferred["decision"], deferred["stage"]) == (None, "deferred", -1)


def test_an_embedding_is_decided_on(gateway: ThreadedGateway) -> None:
    """`{"embedding"}`, for the project the body or the header names."""
    found = _post(gateway, "/predict", embedding=_vector(2), project="vectors").json()
    assert (found["label"], found["decision"]) == ("label 2", "handled")
    by_header = httpx.post(
        f"{gateway.url}/predict", json={"embedding": _vector(1)}, headers={"x-tracer-project": "vectors"}
    )
    assert by_header.json()["label"] == "label 1"


def test_a_text_for_a_policy_of_embeddings_is_deferred(gateway: ThreadedGateway) -> None:
    """The caller has to bring the embedding."""
    answer = _post(gateway, "/predict", input="text 1", project="vectors")
    assert answer.json()["decision"] == "deferred"
    assert answer.headers["x-tracer-reason"] == "no_embedding"


@pytest.mark.parametrize("count", [0, 3, 300])
def test_a_batch_decides_as_single_calls_do(gateway: ThreadedGateway, count: int) -> None:
    """Small ones and those that leave the event loop; three lists of one length."""
    texts = [trace.input for trace in make_traces(300, seed=1)][:count]
    found = _post(gateway, "/predict_batch", inputs=texts).json()
    assert set(found) == {"labels", "decisions", "handled"}
    singles = [_post(gateway, "/predict", input=text).json() for text in texts[:20]]
    assert found["labels"][:20] == [single["label"] for single in singles]
    assert found["handled"] == [word == "handled" for word in found["decisions"]]
    assert len(found["labels"]) == count
    rows = [_vector(i % 4) for i in range(count)]
    vectors = _post(gateway, "/predict_batch", embeddings=rows, project="vectors").json()
    assert vectors["labels"] == [f"label {i % 4}" for i in range(count)]


def test_without_a_policy_everything_is_deferred(gateway: ThreadedGateway) -> None:
    """Text and embedding, one and many."""
    assert _post(gateway, "/predict", input="a", project="new").json()["decision"] == "deferred"
    assert _post(gateway, "/predict", embedding=[1, 2], project="new").headers["x-tracer-reason"] == "no_policy"
    assert _post(gateway, "/predict_batch", inputs=["a", ""], project="new").json()["labels"] == [None, None]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/predict", {}, 400, "embedding"),
        ("/predict", {"input": "a", "embedding": [1]}, 400, "embedding"),
        ("/predict", {"input": 3}, 400, "input"),
        ("/predict", {"input": "a", "project": 3}, 400, "project"),
        ("/predict", {"input": "a", "project": "nobody"}, 404, "project"),
        ("/predict", {"embedding": [1, 2]}, 400, "embedding"),
        ("/predict", {"embedding": [1, 2], "project": "vectors"}, 400, "embedding"),
        ("/predict", {"embedding": "abc", "project": "vectors"}, 400, "embedding"),
        ("/predict", {"embedding": ["a"] * 6, "project": "vectors"}, 400, "embedding"),
        ("/predict", {"embedding": [[1, 2], [3]], "project": "vectors"}, 400, "embedding"),
        ("/predict_batch", {}, 400, "embeddings"),
        ("/predict_batch", {"inputs": "abc"}, 400, "inputs"),
        ("/predict_batch", {"inputs": ["a", 3]}, 400, "inputs"),
        ("/predict_batch", {"embeddings": [[1, 2]], "project": "vectors"}, 400, "embeddings"),
        ("/predict_batch", {"embeddings": [[1] * 6, [1]], "project": "vectors"}, 400, "embeddings"),
        ("/predict_batch", {"embeddings": [[1] * 6, [None] * 6], "project": "vectors"}, 400, "embeddings"),
    ],
)
def test_a_bad_request_names_the_field(
    gateway: ThreadedGateway, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    """In OpenAI's error shape; nothing counts as a fault of ours."""
    answer = _post(gateway, path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert gateway.metric("tracer_internal_errors_total", where="decide") == 0


def test_with_several_projects_and_no_default_one_must_be_named(tmp_path: Path, policy_folder: Path) -> None:
    """Guessing would be an answer to another question."""
    projects = {name: {"policy": str(policy_folder)} for name in ("a", "b")}
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects})) as gateway:
        assert _post(gateway, "/predict", input="a").status_code == 400
        assert _post(gateway, "/predict", input="a", project="b").status_code == 200
