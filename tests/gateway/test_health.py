"""What the gateway says of itself, and paths that do not exist."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


@pytest.fixture
def gateway(tmp_path: Path, policy_folder: Path, refused_folder: Path) -> Iterator[ThreadedGateway]:
    """One project in each state but damaged."""
    projects = {
        "bank": {"policy": str(policy_folder)},
        "weak": {"policy": str(refused_folder)},
        "new": {"policy": str(tmp_path / "absent")},
    }
    # An upstream nobody answers at: health must not depend on it.
    tree = {"projects": projects, "default_project": "bank"}
    with ThreadedGateway(make_settings(tmp_path, tree, "http://127.0.0.1:9/v1")) as running:
        yield running


def test_health_describes_every_project(gateway: ThreadedGateway) -> None:
    """The default one at the top, in the keys of `tracer-llm`."""
    found = httpx.get(f"{gateway.url}/health").json()
    assert found["status"] == "ok"
    assert {"method", "coverage", "teacher_agreement", "n_labels", "n_traces"} <= set(found)
    assert (found["n_labels"], found["n_traces"]) == (8, 700)
    assert 0 < found["coverage"] <= 1
    states = {name: project["state"] for name, project in found["projects"].items()}
    assert states == {"bank": "live", "weak": "refused", "new": "observing"}
    assert "cannot prove 0.99" in found["projects"]["weak"]["reason"]
    assert found["projects"]["weak"]["coverage"] is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_liveness_and_readiness_need_no_teacher(gateway: ThreadedGateway, path: str) -> None:
    """An upstream that is down takes no gateway out of service."""
    assert httpx.get(f"{gateway.url}{path}").status_code == 200
    assert httpx.head(f"{gateway.url}{path}").status_code == 200


def test_metrics_are_prometheus_text(gateway: ThreadedGateway, handled_text: str) -> None:
    """Lanes, reasons, policies and the process itself."""
    httpx.post(f"{gateway.url}/bank/classify", json={"input": handled_text})
    httpx.post(f"{gateway.url}/new/classify", json={"input": handled_text})
    page = httpx.get(f"{gateway.url}/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    for line in (
        'tracer_requests_total{lane="surrogate",project="bank",reason=""} 1.0',
        'tracer_requests_total{lane="teacher",project="new",reason="no_policy"} 1.0',
        'tracer_policy_certified{project="bank"} 1.0',
        'tracer_policy_certified{project="weak"} 0.0',
        "tracer_decision_seconds_count 1.0",
        "tracer_trace_queue 0.0",
        "process_resident_memory_bytes",
    ):
        assert line in page.text


def test_no_client_can_add_series(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Unknown paths, projects, models and reasons leave the metrics as many as they were."""
    httpx.get(f"{gateway.url}/nothing")
    before = httpx.get(f"{gateway.url}/metrics").text.count("\n")
    for i in range(20):
        httpx.get(f"{gateway.url}/nothing/{i}")
        httpx.post(f"{gateway.url}/predict", json={"input": "a", "project": f"p{i}"})
    grown = httpx.get(f"{gateway.url}/metrics").text.count("\n") - before
    assert grown <= 2
    assert teacher.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v2/chat/completions", 404, "not_found"),
        ("GET", "/health/", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("GET", "/bank/classify", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_a_path_or_method_that_does_not_exist_is_an_openai_error(
    gateway: ThreadedGateway, method: str, path: str, status: int, code: str
) -> None:
    """With the x-tracer headers every response has."""
    answer = httpx.request(method, f"{gateway.url}{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-tracer-decision"] == "none"
    assert ("allow" in answer.headers) == (status == 405)


def test_a_fault_of_ours_is_a_500_in_the_same_shape(gateway: ThreadedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the next call is served."""
    monkeypatch.setattr(gateway.services.registry, "serving", None)
    answer = httpx.get(f"{gateway.url}/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-tracer-lane"] == "none"
    assert gateway.metric("tracer_internal_errors_total", where="endpoint") == 1
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/healthz", None),
        ("GET", "/metrics", None),
        ("GET", "/nothing", None),
        ("POST", "/v1/chat/completions", "{"),
        ("POST", "/v1/chat/completions", '{"model": "tracer/unknown", "messages": [{"role": "user", "content": "x"}]}'),
        ("POST", "/predict_batch", '{"inputs": ["a"]}'),
        ("POST", "/predict", '{"input": "a"}'),
    ],
)
def test_every_response_carries_the_six_headers(
    gateway: ThreadedGateway, method: str, path: str, body: str | None
) -> None:
    """Also those on which nobody decided: they say `none`, and never claim that a teacher was asked."""
    headers = httpx.request(method, gateway.url + path, content=body).headers
    assert all(headers[f"x-tracer-{name}"] for name in ("decision", "score", "reason", "policy", "project"))
    assert headers["x-tracer-lane"] in ({"surrogate", "teacher"} if path == "/predict" else {"none"})
