"""What many tests need: a clean environment, a scripted teacher, a small fitted policy."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from tests.encoder_maker import make_encoder
from tests.postgres import Postgres, running_postgres
from tests.scripted_teacher import ScriptedTeacher
from tests.traces_maker import make_traces

_FOREIGN = ("OPENAI_", "ANTHROPIC_", "LITELLM_", "TRACER_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def clean_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, proxy or setting of the developer's reaches a test. TRACER_DATA says where the data lies: it stays."""
    for name in list(os.environ):
        if (name.startswith(_FOREIGN) and name != "TRACER_DATA") or name.upper() in _PROXIES:
            monkeypatch.delenv(name)


@pytest.fixture
def teacher() -> Iterator[ScriptedTeacher]:
    """A teacher that knows the labels of the small policy's world, and says "other" to everything else."""
    known = {trace.input: trace.teacher for trace in make_traces(300, seed=1)}
    with ScriptedTeacher(label_of=lambda text: known.get(text, "other")) as running:
        yield running


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of a module's own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, on SQLite and on PostgreSQL: what it promises is tested on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store/traces.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified policy, fitted once. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    fit_policy(make_traces(700), folder, FitConfig(target_teacher_agreement=0.85))
    return folder


@pytest.fixture(scope="session")
def refused_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy the gate refused."""
    folder = tmp_path_factory.mktemp("refused") / "policy"
    fit_policy(make_traces(200), folder, FitConfig(target_teacher_agreement=0.99))
    return folder


@pytest.fixture(scope="session")
def cascade_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified cascade: cheap features first, a small encoder for what they leave undecided."""
    folder = tmp_path_factory.mktemp("cascade")
    features = f"lexical,static,transformer:{make_encoder(folder / 'encoder')}"
    fit_policy(make_traces(1_500), folder / "policy", FitConfig(0.85, features=features))
    return folder / "policy"


@pytest.fixture(scope="session")
def handled_text(policy_folder: Path) -> str:
    """A text the small policy answers."""
    return _first(policy_folder, handled=True)


@pytest.fixture(scope="session")
def deferred_text(policy_folder: Path) -> str:
    """A text the small policy is uncertain about."""
    return _first(policy_folder, handled=False)


def _first(folder: Path, *, handled: bool) -> str:
    policy = Policy.load(folder)
    for trace in make_traces(300, seed=1):
        decision = policy.decide(trace.input)
        # Handled with the teacher's own label, so that a test may compare the two.
        if decision.handled == handled and (not handled or decision.label == trace.teacher):
            return trace.input
    raise AssertionError("the small policy decides everything the same way")
