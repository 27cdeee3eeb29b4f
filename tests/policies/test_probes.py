"""A policy that no longer decides as it did when it was certified is noticed when it is loaded, and later."""

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from policies import policy as deciding
from policies.artifact import read_file, read_manifest
from policies.encoders import TransformerEncoder
from policies.errors import PolicyChanged, PolicyDamaged
from policies.features import TextEncoder
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.probes import Examined, Probe, choose_probes, difference, read_probes, write_probes
from policies.session import run_session
from policies.settings import FitConfig
from policies.types import LocalDecision, Reason
from tests.encoder_maker import make_encoder
from tests.scripted_embeddings import ScriptedEmbeddings
from tests.traces_maker import make_traces

_PROBE = Probe("where is it", [1, 2], "delivery", 0.9, True, 0.8, 1e-3)


def _probes(folder: Path) -> tuple[Probe, ...]:
    manifest = read_manifest(folder)
    return read_probes(read_file(folder, manifest, "probes"), of_texts=manifest.input_kind == "text")


def _said(probe: Probe) -> LocalDecision:
    reason = None if probe.handled else Reason.UNCERTAIN
    return LocalDecision(probe.label if probe.handled else None, probe.handled, probe.score, reason, 0, probe.label)


# The rule -----------------------------------------------------------------------------------------------------------


def test_the_same_again_is_no_difference() -> None:
    """Nor is a score that is a little off."""
    assert difference(_PROBE, [1, 2], _said(_PROBE)) is None
    assert difference(_PROBE, [1, 2], _said(replace(_PROBE, score=0.9009))) is None
    assert difference(_PROBE, [1, 2], _said(replace(_PROBE, score=0.8991))) is None


@pytest.mark.parametrize(
    ("tokens", "now", "words"),
    [
        ([1, 3], _PROBE, "tokenizer"),
        (None, _PROBE, "tokenizer"),
        ([1, 2], replace(_PROBE, label="loan"), "'loan', and said 'delivery'"),
        ([1, 2], replace(_PROBE, label=None), "None, and said 'delivery'"),
        ([1, 2], replace(_PROBE, score=0.8989), "0.8989, and was 0.9000"),
        ([1, 2], replace(_PROBE, score=0.9011), "0.9011, and was 0.9000"),
        ([1, 2], replace(_PROBE, handled=False), "uncertain, and was answered"),
    ],
)
def test_what_differs_is_named(tokens: list[int] | None, now: Probe, words: str) -> None:
    """With the input it was seen on."""
    found = difference(_PROBE, tokens, _said(now))
    assert found is not None
    assert words in found
    assert "'where is it'" in found


def test_whether_it_is_handled_is_left_open_near_the_threshold() -> None:
    """Rounding alone may put a score on the other side."""
    near = replace(_PROBE, limit=0.8995)
    assert difference(near, [1, 2], _said(replace(near, handled=False))) is None
    never = replace(_PROBE, limit=None, handled=False)
    assert difference(never, [1, 2], _said(replace(never, handled=True))) is not None


def _examined(score: float, stage: int, slack: float) -> Examined:
    decision = LocalDecision("a" if stage >= 0 else None, stage >= 0, score, None, stage, "a")
    return Examined(decision, [1], 0.5, 1e-3, slack)


def test_probes_are_clear_of_every_kind_and_of_every_score() -> None:
    """Both stages and what is deferred, from sure to unsure; nothing that a rounding error could change."""
    kinds = [(-1, 2.0), (0, 2.0), (1, 2.0), (0, 0.5)]
    examined = [_examined(i / 400, *kinds[i % 4]) for i in range(400)]
    examined[5] = examined[9] = None  # type: ignore[call-overload]
    chosen = [examined[i] for i in choose_probes(examined)]
    assert len(chosen) == 16
    assert all(found.slack >= 1 for found in chosen)
    for stage in (-1, 0, 1):
        scores = sorted(found.decision.accept_score for found in chosen if found.decision.stage == stage)
        assert len(scores) >= 5
        assert scores[0] < 0.05
        assert scores[-1] > 0.95
    assert choose_probes([None]) == choose_probes([_examined(0.5, 0, 0.9)]) == choose_probes([]) == []
    assert len(choose_probes(examined, 3)) == 3
    assert choose_probes(examined, 0) == []


def test_a_kind_of_which_there_is_little_leaves_its_part_to_others() -> None:
    """Sixteen where there are sixteen."""
    examined = [_examined(0.3, -1, 2.0), *(_examined(0.9, 0, 2.0) for _ in range(40))]
    chosen = choose_probes(examined)
    assert len(chosen) == 16
    assert 0 in chosen


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"{}", b"5", b"[1]", b'[{"input": "x"}]', b'[{"x": 1}]', b"[null]", b'["x"]'],
)
def test_a_file_that_holds_no_probes_is_refused(content: bytes) -> None:
    """As a ValueError, whatever it holds."""
    with pytest.raises(ValueError, match=r".+"):
        read_probes(content, of_texts=True)


@pytest.mark.parametrize("changes", [{"score": "x"}, {"tokens": [0.5]}, {"label": 3}, {"handled": 1}, {"input": 5}])
def test_a_probe_of_other_types_is_refused(changes: dict[str, Any]) -> None:
    """Each field has its own."""
    assert read_probes(write_probes([_PROBE]), of_texts=True) == (_PROBE,)
    entry = orjson.loads(write_probes([_PROBE]))[0] | changes
    with pytest.raises(ValueError, match="probes"):
        read_probes(orjson.dumps([entry]), of_texts=True)


def test_probes_of_another_kind_of_input_are_refused() -> None:
    """A policy of embeddings has no use for texts."""
    with pytest.raises(ValueError, match="kind"):
        read_probes(write_probes([_PROBE]), of_texts=False)
    vector = replace(_PROBE, input=[0.5, 1.0], tokens=None)
    assert read_probes(write_probes([vector]), of_texts=False) == (vector,)
    with pytest.raises(ValueError, match="kind"):
        read_probes(write_probes([vector]), of_texts=True)


# A policy in the process ----------------------------------------------------------------------------------------------


def test_a_policy_brings_probes_and_says_the_same_again(policy_folder: Path) -> None:
    """Sixteen, handled and deferred, none of them long; loading them changes nothing."""
    probes = _probes(policy_folder)
    assert len(probes) == 16
    assert {probe.handled for probe in probes} == {True, False}
    assert len({str(probe.input) for probe in probes}) == 16
    policy = Policy.load(policy_folder)
    assert policy.probe() is None
    for probe in probes:
        decision = policy.decide(str(probe.input))
        assert (decision.guess, decision.handled) == (probe.label, probe.handled)
        assert decision.accept_score == pytest.approx(probe.score, abs=1e-6)


def test_a_tokenizer_that_reads_otherwise_is_noticed(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an upgrade of its library: the file is the same, the tokens are not."""
    encode = TextEncoder.encode
    monkeypatch.setattr(TextEncoder, "encode", lambda self, text: encode(self, text)[::-1])
    with pytest.raises(PolicyChanged, match=r"no longer decides as it did.*the tokenizer reads it in another way"):
        Policy.load(policy_folder)


@pytest.mark.parametrize("off", [0.1, -0.1])
def test_a_runtime_that_computes_otherwise_is_noticed(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """A tenth of the accept score is more than rounding; and it is damage, for who does not ask further."""

    def shifted(session: Any, inputs: Mapping[str, Any]) -> tuple[int, float, float]:
        label, score, guard = run_session(session, inputs)
        return label, score + off, guard

    monkeypatch.setattr(deciding, "run_session", shifted)
    with pytest.raises(PolicyDamaged, match=r"accept score is .*, and was"):
        Policy.load(policy_folder)


def test_rounding_is_not_noticed(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times what another order of float32 sums was seen to do, at random, fifty times."""
    generator = np.random.default_rng(0)

    def rounded(session: Any, inputs: Mapping[str, Any]) -> tuple[int, float, float]:
        label, score, guard = run_session(session, inputs)
        return label, score + generator.uniform(-1e-4, 1e-4), guard + generator.uniform(-4e-4, 4e-4)

    monkeypatch.setattr(deciding, "run_session", rounded)
    policy = Policy.load(policy_folder)
    assert [policy.probe() for _ in range(50)] == [None] * 50


def test_a_refused_policy_has_nothing_to_compare(refused_folder: Path) -> None:
    """No probes, and no difference."""
    assert "probes" not in read_manifest(refused_folder).files
    assert Policy.load(refused_folder).probe() is None


def test_texts_that_come_again_are_one_probe(tmp_path: Path) -> None:
    """And long ones are none where there are short ones; where there are not, the shortest are."""
    traces = make_traces(400)
    long = [replace(trace, id=f"{trace.id} long", input=f"{trace.input} " * 20) for trace in traces]
    fit_policy([*traces, *traces, *long], tmp_path / "both", FitConfig(0.8))
    inputs = [str(probe.input) for probe in _probes(tmp_path / "both")]
    assert len(set(inputs)) == len(inputs) == 16
    assert max(map(len, inputs)) <= 300
    fit_policy(long, tmp_path / "long", FitConfig(0.8))
    assert len(_probes(tmp_path / "long")) == 16


@pytest.mark.parametrize(("dimensions", "n"), [(8, 16), (1_000, 8), (9_000, 0)])
def test_a_policy_of_embeddings_has_vectors_for_probes(tmp_path: Path, dimensions: int, n: int) -> None:
    """As many as make a small file: 8,192 numbers."""
    traces = make_traces(120)
    generator = np.random.default_rng(0)
    centres = {label: generator.normal(size=dimensions) for label in sorted({trace.teacher for trace in traces})}
    matrix = np.array([centres[trace.teacher] + generator.normal(size=dimensions) for trace in traces], np.float32)
    fit_policy(traces, tmp_path, FitConfig(0.6), matrix)
    probes = _probes(tmp_path)
    assert len(probes) == n
    rows = {row.tobytes() for row in matrix}
    assert all(np.array(probe.input, np.float32).tobytes() in rows for probe in probes)
    assert Policy.load(tmp_path).probe() is None


# An encoder -----------------------------------------------------------------------------------------------------------

Damage = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def _reversed(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(vector[::-1])


def _encoding(damage: Damage) -> Callable[[TransformerEncoder, str], Any]:
    encode = TransformerEncoder.encode
    return lambda self, text: damage(encode(self, text))


def test_a_cascade_has_probes_of_each_stage(cascade_folder: Path) -> None:
    """Those that only the encoder could tell may be off by more."""
    probes, policy = _probes(cascade_folder), Policy.load(cascade_folder)
    stages = {policy.decide(str(probe.input)).stage for probe in probes}
    assert stages == {-1, 0, 1}
    quick = {policy.decide_quickly(str(probe.input)) is not None for probe in probes if probe.tolerance < 0.01}
    slow = {policy.decide_quickly(str(probe.input)) is not None for probe in probes if probe.tolerance > 0.01}
    assert (quick, slow) == ({True}, {False})


def test_another_encoder_is_noticed(cascade_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that gives other vectors of the same length."""
    monkeypatch.setattr(TransformerEncoder, "encode", _encoding(_reversed))
    with pytest.raises(PolicyChanged, match="encoder or runtime has changed"):
        Policy.load(cascade_folder)


def test_an_encoder_that_fails_is_noticed(cascade_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the policy is in use, too."""
    policy = Policy.load(cascade_folder)

    def fail(*_: object) -> None:
        raise ValueError("no kernel for this")

    monkeypatch.setattr(TransformerEncoder, "encode", fail)
    assert "no kernel for this" in str(policy.probe())


def test_an_encoder_that_rounds_otherwise_is_not_noticed(cascade_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision, and what an endpoint on other machines does."""
    generator = np.random.default_rng(0)

    def noisy(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        moved = vector.astype(np.float16).astype(np.float32) + generator.normal(scale=1e-3, size=len(vector))
        return np.asarray(moved / np.linalg.norm(moved), np.float32)

    monkeypatch.setattr(TransformerEncoder, "encode", _encoding(noisy))
    policy = Policy.load(cascade_folder)
    assert [policy.probe() for _ in range(20)] == [None] * 20


# An endpoint ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TransformerEncoder:
    """What answers behind the URL."""
    return TransformerEncoder.from_folder(make_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def right(encoder: TransformerEncoder) -> Callable[[str], list[float]]:
    """A text's vector by that model."""
    return lambda text: [float(x) for x in encoder.encode(text)]


@pytest.fixture(scope="module")
def server(right: Callable[[str], list[float]]) -> Iterator[ScriptedEmbeddings]:
    """The endpoint of the module."""
    with ScriptedEmbeddings(vector=right) as running:
        yield running


@pytest.fixture(scope="module")
def remote_folder(server: ScriptedEmbeddings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified cascade whose encoder is the endpoint."""
    folder = tmp_path_factory.mktemp("remote")
    features = f"lexical,static,endpoint:{server.url}#tiny"
    fit_policy(make_traces(1_500), folder, FitConfig(0.85, features=features))
    return folder


@pytest.fixture
def endpoint(server: ScriptedEmbeddings, right: Callable[[str], list[float]]) -> Iterator[ScriptedEmbeddings]:
    """The endpoint, as it was after each test."""
    server.requests.clear()
    yield server
    server.vector = right
    server.scripts.clear()


def test_an_endpoint_is_asked_once_when_a_policy_is_loaded(remote_folder: Path, endpoint: ScriptedEmbeddings) -> None:
    """All probes that need it are one request, at each look."""
    policy = Policy.load(remote_folder)
    assert policy.remote
    assert len(endpoint.requests) == 1
    assert 1 <= len(endpoint.requests[0]["input"]) <= 16
    assert policy.probe() is None
    assert len(endpoint.requests) == 2


def test_another_model_behind_the_url_is_noticed(
    remote_folder: Path, endpoint: ScriptedEmbeddings, right: Callable[[str], list[float]]
) -> None:
    """At the load, and by a policy that is in use; and that the old one is back."""
    policy = Policy.load(remote_folder)
    endpoint.vector = lambda text: right(text)[::-1]
    assert "no longer decides as it did when it was certified" in str(policy.probe())
    with pytest.raises(PolicyChanged):
        Policy.load(remote_folder)
    endpoint.vector = right
    assert policy.probe() is None
    assert Policy.load(remote_folder).probe() is None


def test_a_model_of_another_size_behind_the_url_is_noticed(
    remote_folder: Path, endpoint: ScriptedEmbeddings, right: Callable[[str], list[float]]
) -> None:
    """Its vectors are of another length: the message says so."""
    endpoint.vector = lambda text: [*right(text), 0.0]
    with pytest.raises(PolicyChanged, match="gave 17 dimensions where 16 are expected"):
        Policy.load(remote_folder)


@pytest.mark.parametrize("status", [401, 404, 429, 500, 0])
def test_an_endpoint_that_gives_no_vectors_stops_no_load(
    remote_folder: Path, endpoint: ScriptedEmbeddings, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that needs it can be answered anyway; what does not is. `probe` tells who asks."""
    endpoint.scripts = [lambda _: (status, {"error": {"message": "no"}})] * 12
    policy = Policy.load(remote_folder)
    assert "without having been tried" in caplog.text
    assert any(policy.decide_quickly(trace.input) is not None for trace in make_traces(50, seed=2))
    endpoint.scripts = [lambda _: (status, {"error": {"message": "no"}})] * 12
    with pytest.raises(ConnectionError, match="embedding endpoint"):
        policy.probe()


def test_an_endpoint_that_is_gone_stops_no_load(encoder: TransformerEncoder, tmp_path: Path) -> None:
    """As when a gateway starts before its embedding server."""
    with ScriptedEmbeddings(vector=lambda text: [float(x) for x in encoder.encode(text)]) as server:
        config = FitConfig(0.85, features=f"lexical,static,endpoint:{server.url}#tiny")
        fit_policy(make_traces(900), tmp_path, config)
    with pytest.raises(ConnectionError):
        Policy.load(tmp_path).probe()


def test_an_endpoint_that_hangs_is_not_waited_for_long(encoder: TransformerEncoder, tmp_path: Path) -> None:
    """Two seconds, and not the half minute that a call may take."""
    with ScriptedEmbeddings(vector=lambda text: [float(x) for x in encoder.encode(text)]) as server:
        config = FitConfig(0.85, features=f"lexical,static,endpoint:{server.url}#tiny")
        fit_policy(make_traces(900), tmp_path, config)
        port = int(server.url.rpartition(":")[2].partition("/")[0])
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        deaf.bind(("127.0.0.1", port))
        deaf.listen()
        with pytest.raises(ConnectionError, match="no answer in 2 s"):
            Policy.load(tmp_path).probe()
