"""Code written for `tracer-llm` runs on `import tracer`."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import orjson
import pytest

import tracer
from tests.traces_maker import make_traces, write


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `traces.jsonl`."""
    folder = tmp_path_factory.mktemp("sdk")
    write(folder / "traces.jsonl", make_traces(900))
    return folder


def _embed(texts: list[str]) -> np.ndarray:
    """A toy embedding: counts of hashed words."""
    matrix = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(matrix, texts, strict=True):
        for word in text.split():
            row[sum(word.encode()) % 64] += 1
    return matrix


def test_the_quickstart_of_tracer_llm_runs_unchanged(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit on embeddings, load with an embedder, predict text, fall back when deferred."""
    monkeypatch.chdir(workspace)
    embedder = tracer.Embedder.from_callable(_embed)
    X = _embed([trace.input for trace in make_traces(900)])  # noqa: N806 - as the quickstart writes it
    result = tracer.fit("traces.jsonl", embeddings=X, config=tracer.FitConfig(target_teacher_agreement=0.85))
    assert result.manifest.coverage_cal is not None
    assert result.manifest.coverage_cal > 0
    assert result.manifest.method in {"l2d", "global"}
    router = tracer.load_router(".tracer", embedder=embedder)
    out = router.predict("lost card stolen wallet please block")
    assert out["label"] == "card_lost"
    assert out["decision"] == "handled"
    assert set(out) == {"label", "decision", "accept_score", "stage"}
    deferred = router.predict("qqq zzz", fallback=lambda: "asked the llm")
    assert (deferred["label"], deferred["decision"], deferred["stage"]) == ("asked the llm", "deferred", -1)
    batch = router.predict_batch(X[:20])
    assert len(batch["labels"]) == 20
    assert batch["handled"].dtype == bool
    assert router.predict(X[0])["decision"] == batch["decisions"][0]


def test_text_needs_no_embedder_by_default(workspace: Path, tmp_path: Path) -> None:
    """Without embeddings the features are read off the texts, at fit and at serve."""
    tracer.fit(workspace / "traces.jsonl", tmp_path, config=tracer.FitConfig(0.85))
    router = tracer.load_router(tmp_path)
    assert router.predict("forgot my password cannot login")["label"] == "password"
    assert router.predict_batch([])["labels"] == []


def test_the_label_is_what_the_teacher_says(tmp_path: Path) -> None:
    """JSON and quoted texts to the character, one by one and in a batch; `preds` numbers the policy's labels."""
    forms = {"json": '{{"v": 1,  "intent":"{}"}}', "quoted": '"{}".\n'}
    for name, form in forms.items():
        traces = [replace(trace, teacher=form.format(trace.teacher)) for trace in make_traces(700)]
        tracer.fit(write(tmp_path / f"{name}.jsonl", traces), tmp_path / name, config=tracer.FitConfig(0.85))
        router = tracer.load_router(tmp_path / name)
        assert router.predict("forgot my password cannot login")["label"] == form.format("password")
        batch = router.predict_batch(["forgot my password cannot login", ""])
        assert batch["labels"] == [form.format("password"), None]
        label = router.policy.labels[batch["preds"][0]]
        assert router.policy.answers[label].text == form.format("password")


def test_embeddings_beside_the_traces_are_found(tmp_path: Path) -> None:
    """`traces.npy` next to `traces.jsonl` is used, as users of tracer-llm expect."""
    traces = write(tmp_path / "traces.jsonl", make_traces(900))
    np.save(tmp_path / "traces.npy", _embed([trace.input for trace in make_traces(900)]))
    assert tracer.fit(traces, tmp_path / "p", config=tracer.FitConfig(0.8)).manifest.embedding_dim == 64


def test_text_for_an_embedding_policy_without_embedder_is_an_error(workspace: Path, tmp_path: Path) -> None:
    """The message says to bring an embedder."""
    X = _embed([trace.input for trace in make_traces(900)])  # noqa: N806
    tracer.fit(workspace / "traces.jsonl", tmp_path, X, tracer.FitConfig(0.8))
    with pytest.raises(ValueError, match="embedder"):
        tracer.load_router(tmp_path).predict("text")


def test_update_adds_to_the_folder(workspace: Path, tmp_path: Path) -> None:
    """`tracer.update` reads a file of new traces."""
    tracer.fit(workspace / "traces.jsonl", tmp_path, config=tracer.FitConfig(0.8))
    new = write(tmp_path / "new.jsonl", make_traces(100, seed=2))
    assert tracer.update(new, tmp_path).manifest.n_traces == 1_000


def test_an_embedder_asks_an_http_endpoint() -> None:
    """One request a text, or one for all in batch mode, over a real socket."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            many = [[1.0, float(len(text))] for text in body.get("inputs", [])]
            answer = orjson.dumps({"embeddings": many, "embedding": [1.0, float(len(body.get("input", "")))]})
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/"
    try:
        single = tracer.Embedder.from_endpoint(url).embed(["a", "bbb"])
        batch = tracer.Embedder.from_endpoint(url, batch_key="inputs", batch_output_key="embeddings").embed(
            ["a", "bbb"]
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert single.tolist() == batch.tolist() == [[1.0, 1.0], [1.0, 3.0]]


def test_an_embedder_that_returns_the_wrong_number_of_rows_is_an_error() -> None:
    """A mismatch is caught where it happens."""
    with pytest.raises(ValueError, match="returned shape"):
        tracer.Embedder.from_callable(lambda _: np.zeros((1, 2))).embed(["a", "b"])
    with pytest.raises(ValueError, match="http"):
        tracer.Embedder.from_endpoint("file:///etc/hosts")


def test_unknown_names_are_attribute_errors() -> None:
    """The lazy module behaves like any other."""
    with pytest.raises(AttributeError, match="nothing_here"):
        tracer.nothing_here  # noqa: B018
