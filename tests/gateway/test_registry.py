"""Policies come, change, break and go under a running gateway."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from policies.encoders import TransformerEncoder
from policies.fitting import fit_policy
from policies.settings import FitConfig
from tests.encoder_maker import make_encoder
from tests.scripted_embeddings import ScriptedEmbeddings
from tests.serving import ThreadedGateway, make_settings
from tests.traces_maker import make_traces


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the project's policy is to be."""
    return tmp_path / "policy"


@pytest.fixture
def gateway(tmp_path: Path, folder: Path) -> Iterator[ThreadedGateway]:
    """A decision server whose policy folder does not exist yet."""
    tree = {"projects": {"bank": {"policy": str(folder)}}, "server": {"policy_poll_seconds": 0.02}}
    with ThreadedGateway(make_settings(tmp_path, tree)) as running:
        yield running


def _eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def _state(gateway: ThreadedGateway) -> str:
    return gateway.services.registry.serving("bank").state


def _decision(gateway: ThreadedGateway, text: str) -> str:
    found = httpx.post(f"{gateway.url}/bank/classify", json={"input": text, "explain": True}).json()
    return str(found["reason"] or found["decision"])


def test_a_policy_goes_live_when_its_folder_appears(
    gateway: ThreadedGateway, folder: Path, policy_folder: Path, handled_text: str
) -> None:
    """Without a restart; before that every call is deferred."""
    assert (_state(gateway), _decision(gateway, handled_text)) == ("observing", "no_policy")
    shutil.copytree(policy_folder, folder)
    _eventually(lambda: _state(gateway) == "live")
    assert _decision(gateway, handled_text) == "handled"
    version = gateway.services.registry.serving("bank").version
    assert gateway.metric("tracer_policy_info", project="bank", version=str(version)) == 1


def test_a_new_version_replaces_the_old_one(gateway: ThreadedGateway, folder: Path, policy_folder: Path) -> None:
    """One series of tracer_policy_info remains."""
    shutil.copytree(policy_folder, folder)
    _eventually(lambda: _state(gateway) == "live")
    old = str(gateway.services.registry.serving("bank").version)
    new = fit_policy(make_traces(700, seed=5), folder, FitConfig(target_teacher_agreement=0.85)).manifest.version
    _eventually(lambda: gateway.services.registry.serving("bank").version == new)
    assert gateway.metric("tracer_policy_info", project="bank", version=new) == 1
    assert gateway.metric("tracer_policy_info", project="bank", version=old) == 0


@pytest.mark.parametrize(
    "victim", ["manifest.json", "versions/*/model.onnx", "versions/*/tokenizer.json", "tables/*/words.npy"]
)
def test_a_damaged_folder_stops_local_answers(
    gateway: ThreadedGateway, folder: Path, policy_folder: Path, handled_text: str, victim: str
) -> None:
    """The manifest on disk is the truth; a repaired one is taken up again."""
    shutil.copytree(policy_folder, folder)
    _eventually(lambda: _state(gateway) == "live")
    (path,) = folder.glob(victim)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"x" * 20)
    (folder / "manifest.json").touch()
    _eventually(lambda: _state(gateway) == "damaged")
    assert _decision(gateway, handled_text) == "damaged"
    assert path.name in httpx.get(f"{gateway.url}/health").json()["projects"]["bank"]["reason"]
    assert gateway.metric("tracer_policy_loads_total", outcome="damaged") >= 1
    path.write_bytes(whole)
    _eventually(lambda: _state(gateway) == "live")
    assert _decision(gateway, handled_text) == "handled"


def test_a_removed_folder_is_observing_again(gateway: ThreadedGateway, folder: Path, policy_folder: Path) -> None:
    """Nothing is answered from memory that is no longer on disk."""
    shutil.copytree(policy_folder, folder)
    _eventually(lambda: _state(gateway) == "live")
    (folder / "manifest.json").unlink()
    _eventually(lambda: _state(gateway) == "observing")


def test_how_often_folders_are_looked_at_is_a_setting(
    tmp_path: Path, folder: Path, policy_folder: Path, handled_text: str
) -> None:
    """With an hour in between, a folder that appears is not seen."""
    tree = {"projects": {"bank": {"policy": str(folder)}}, "server": {"policy_poll_seconds": 3600.0}}
    with ThreadedGateway(make_settings(tmp_path, tree)) as gateway:
        shutil.copytree(policy_folder, folder)
        assert _decision(gateway, handled_text) == "no_policy"


def test_watching_outlives_a_fault(
    gateway: ThreadedGateway, folder: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad look is counted; the next one sees the policy."""
    monkeypatch.setattr(gateway.services.registry, "_paths", None)
    _eventually(lambda: gateway.metric("tracer_internal_errors_total", where="policy_watch") > 0)
    monkeypatch.undo()
    shutil.copytree(policy_folder, folder)
    _eventually(lambda: _state(gateway) == "live")


def test_a_policy_whose_encoder_has_changed_answers_nothing_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model behind the URL is damage, said with its cause; it is not asked again at every look."""
    monkeypatch.setattr("gateway.registry._CHANGED_SECONDS", 0.5)
    encoder = TransformerEncoder.from_folder(make_encoder(tmp_path / "encoder"))
    with ScriptedEmbeddings(vector=lambda text: [float(x) for x in encoder.encode(text)]) as server:
        features = f"lexical,static,endpoint:{server.url}#tiny"
        fit_policy(make_traces(1_500), tmp_path / "policy", FitConfig(0.85, features=features))
        right, server.vector = server.vector, lambda text: [float(x) for x in encoder.encode(text)[::-1]]
        server.requests.clear()
        tree = {
            "projects": {"bank": {"policy": str(tmp_path / "policy")}},
            "server": {"policy_poll_seconds": 0.02},
        }
        with ThreadedGateway(make_settings(tmp_path, tree)) as gateway:
            assert _state(gateway) == "damaged"
            assert "no longer decides as it did" in gateway.services.registry.serving("bank").detail
            assert _decision(gateway, "refund my money") == "damaged"
            time.sleep(0.2)
            assert len(server.requests) <= 2
            server.vector = right
            _eventually(lambda: _state(gateway) == "live")
            assert _decision(gateway, "refund my money") == "handled"
