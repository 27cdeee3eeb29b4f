"""An encoder beside cheap blocks is asked only where they leave a call undecided, and travels in the policy folder."""

import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import orjson
import pytest

from policies.artifact import read_manifest
from policies.encoders import TransformerEncoder
from policies.errors import FitError, PolicyDamaged
from policies.evaluation import evaluate
from policies.fitting import fit_policy, update_policy
from policies.measuring import early_threshold
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason
from tests.encoder_maker import make_encoder
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder."""
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A certified policy of two stages, fitted with an encoder folder that is gone by now."""
    gone = tmp_path_factory.mktemp("gone") / "encoder"
    shutil.copytree(encoder, gone)
    folder = tmp_path_factory.mktemp("cascade") / "policy"
    manifest = fit_policy(_traces(), folder, FitConfig(0.85, features=f"lexical,static,transformer:{gone}")).manifest
    assert manifest.method == "rsb"
    shutil.rmtree(gone)
    return folder


def _traces() -> list:  # type: ignore[type-arg]
    return make_traces(1_500, blur=0.25)


def test_both_stages_answer_and_the_target_holds_over_both(cascade: Path) -> None:
    """Stage 0 answers what it is very sure of, stage 1 some of the rest."""
    result = evaluate(Policy.load(cascade), make_traces(1_500, seed=8, blur=0.25))
    assert result.by_stage["0"] > 30
    assert result.by_stage["1"] > 30
    assert result.teacher_agreement is not None
    assert result.teacher_agreement >= 0.85


def test_the_certificates_coverage_is_what_live_calls_get(cascade: Path) -> None:
    """What the gate counted over both stages is about what is handled of new calls."""
    result = evaluate(Policy.load(cascade), make_traces(1_500, seed=9, blur=0.25))
    assert result.coverage == pytest.approx(read_manifest(cascade).certificate.coverage, abs=0.06)


def test_the_encoder_is_asked_only_for_what_is_undecided(cascade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`decide_quickly` never encodes, and says None exactly where `decide` would."""
    policy = Policy.load(cascade)
    asked: list[str] = []
    encode = TransformerEncoder.encode

    def watched(self: TransformerEncoder, text: str) -> object:
        asked.append(text)
        return encode(self, text)

    monkeypatch.setattr(TransformerEncoder, "encode", watched)
    assert policy.slow
    for trace in make_traces(200, seed=10, blur=0.25):
        quick = policy.decide_quickly(trace.input)
        assert not asked
        full = policy.decide(trace.input)
        assert (quick is None) == bool(asked)
        assert quick is None or quick == full
        asked.clear()
    empty, long = policy.decide_quickly(" "), policy.decide_quickly("x" * 20_000)
    assert empty is not None
    assert long is not None
    assert (empty.reason, long.reason) == (Reason.EMPTY, Reason.TOO_LONG)


def test_probabilities_come_from_the_stage_that_answers_or_the_last(cascade: Path) -> None:
    """The likeliest label is what that stage would say, with at least its accept score."""
    policy = Policy.load(cascade)
    stages = set()
    for trace in make_traces(200, seed=8, blur=0.25):
        decision, found = policy.decide(trace.input), policy.probabilities(trace.input)
        assert found is not None
        first, probability = next(iter(found.items()))
        assert first == decision.guess
        assert probability == pytest.approx(decision.accept_score) or (decision.accept_score < probability <= 0.5)
        stages.add(decision.stage)
    assert stages == {-1, 0, 1}


def test_more_agreement_moves_both_stages(cascade: Path) -> None:
    """One row of the frontier has a threshold a stage, tied by the same rule as the certificate's."""
    policy = Policy.load(cascade)
    row = next(row for row in policy.manifest.frontier if row.target > 0.85)
    first, last = row.thresholds
    assert first is not None
    assert last is not None
    assert first == pytest.approx(early_threshold(last))
    stages = set()
    for trace in make_traces(400, seed=8, blur=0.25):
        found, quick = policy.decide(trace.input, row.target), policy.decide_quickly(trace.input, row.target)
        assert quick is None or quick == found
        if found.handled:
            assert found.accept_score >= (first, last)[found.stage]
            stages.add(found.stage)
    assert stages == {0, 1}


def test_versions_share_the_encoder(encoder: Path, tmp_path: Path) -> None:
    """An update with the same encoder adds no second copy of it; a damaged copy is damage."""
    folder = tmp_path / "policy"
    config = FitConfig(0.85, features=f"lexical,static,transformer:{encoder}")
    fit_policy(_traces(), folder, config)
    (next((folder / "encoders").iterdir()) / "model.onnx").write_bytes(b"damaged, and mended by the next fit")
    fit_policy(_traces(), folder, config)
    update_policy(make_traces(100, seed=11), folder)
    copies = list((folder / "encoders").iterdir())
    assert len(copies) == 1
    assert {path.name for path in copies[0].iterdir()} == {"model.onnx", "tokenizer.json", "encoder.json"}
    (copies[0] / "model.onnx").write_bytes(b"something else")
    with pytest.raises(PolicyDamaged, match="checksum"):
        Policy.load(folder)


def test_an_update_needs_no_encoder_folder(cascade: Path, tmp_path: Path) -> None:
    """The policy carries its encoder: the folder that it was fitted with is gone."""
    shutil.copytree(cascade, tmp_path / "policy")
    result = update_policy(make_traces(100, seed=15, blur=0.25), tmp_path / "policy")
    assert result.manifest.features["encoder"] == read_manifest(cascade).features["encoder"]
    assert Policy.load(tmp_path / "policy").slow


def test_an_encoder_alone_is_one_stage(encoder: Path, tmp_path: Path) -> None:
    """Without cheap blocks every text is encoded, and nothing is decided quickly."""
    manifest = fit_policy(_traces(), tmp_path, FitConfig(0.85, features=f"transformer:{encoder}")).manifest
    policy = Policy.load(tmp_path)
    assert len(manifest.stages) == 1
    assert policy.decide_quickly("refund money back") is None
    answers = [policy.decide(trace.input) for trace in make_traces(300, seed=13, blur=0.25)]
    assert sum(answer.handled for answer in answers) > 100


def test_protected_labels_take_the_whole_model_at_once(encoder: Path, tmp_path: Path) -> None:
    """With labels that are certified alone there is no early stage to speak for them."""
    config = FitConfig(0.85, features=f"lexical,static,transformer:{encoder}", protect=("refund",))
    manifest = fit_policy(_traces(), tmp_path, config).manifest
    assert len(manifest.stages) == 1
    assert manifest.stages[0].encoded


def test_auto_reports_its_options_and_keeps_to_the_latency_budget(encoder: Path, tmp_path: Path) -> None:
    """Each option has coverage and microseconds; a budget below the encoder's leaves the encoder out."""
    auto = f"auto,transformer:{encoder}"
    manifest = fit_policy(_traces(), tmp_path / "rich", FitConfig(0.85, features=auto, latency_budget_us=1e6)).manifest
    report = orjson.loads((tmp_path / "rich" / manifest.files["report"].path).read_bytes())
    options = {row["features"]: row for row in report["options"]}
    assert list(options) == ["static", "lexical,static", f"lexical,static,transformer:{encoder}"]
    assert all(row["microseconds"] > 0 for row in options.values() if row["certified"])
    assert manifest.certificate.coverage == max(row["coverage"] for row in options.values())
    assert manifest.features["spec"] in options
    poor = fit_policy(_traces(), tmp_path / "poor", FitConfig(0.85, features=auto, latency_budget_us=1e-3)).manifest
    assert len(poor.stages) <= 1


def test_a_folder_that_is_no_encoder_is_one_clear_error(tmp_path: Path) -> None:
    """No traceback and no policy."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FitError, match="transformer folder"):
        fit_policy(_traces(), tmp_path / "policy", FitConfig(features=f"static,transformer:{tmp_path / 'empty'}"))
    assert not (tmp_path / "policy" / "manifest.json").exists()


def test_an_endpoint_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    """The fit says which URL it could not reach; one without a scheme how to write it."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(FitError, match=str(port)):
        fit_policy(make_traces(60), tmp_path, FitConfig(features=f"static,endpoint:http://127.0.0.1:{port}/v1#m"))
    with pytest.raises(FitError, match="endpoint:https://HOST"):
        fit_policy(make_traces(60), tmp_path, FitConfig(features="static,endpoint:127.0.0.1/v1"))


class _Embeddings(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint in front of a local encoder."""

    encoder: TransformerEncoder
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """`{"input": [...]}` -> vectors in OpenAI's shape."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        texts = [asked] if isinstance(asked, str) else asked
        rows = [{"index": i, "embedding": self.encoder.encode(text).tolist()} for i, text in enumerate(texts)]
        body = json.dumps({"data": rows}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_an_endpoint_is_a_block_like_any_other(encoder: Path, tmp_path: Path) -> None:
    """Fitted through real sockets, served through them, and an error that says so once the endpoint is gone."""
    handler = type("Handler", (_Embeddings,), {"encoder": TransformerEncoder.from_folder(encoder)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/embeddings"
        config = FitConfig(0.85, features=f"lexical,static,endpoint:{url}")
        manifest = fit_policy(make_traces(900, blur=0.25), tmp_path, config).manifest
        assert manifest.method == "rsb"
        policy = Policy.load(tmp_path)
        undecided = [t.input for t in make_traces(200, seed=14) if policy.decide_quickly(t.input) is None]
        assert any(policy.decide(text).stage == 1 for text in undecided)
        server.shutdown()
    with pytest.raises(ConnectionError, match=str(server.server_port)):
        Policy.load(tmp_path).decide(undecided[0])


def test_a_vector_of_the_wrong_size_never_reaches_the_graph(cascade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that answers something else raises, which the gateway turns into a forward."""
    policy = Policy.load(cascade)
    monkeypatch.setattr(TransformerEncoder, "encode", lambda *_: np.zeros(3, np.float32))
    undecided = next(t.input for t in make_traces(300, seed=12, blur=0.25) if policy.decide_quickly(t.input) is None)
    with pytest.raises(Exception, match=r"(?i)dimension|shape"):
        policy.decide(undecided)
