"""create_app: what it opens, and when."""

from pathlib import Path

import httpx
import pytest

from gateway.app import create_app
from gateway.errors import SettingsError
from gateway.settings import build_settings
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


def test_nothing_is_opened_before_the_lifespan_starts(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """No file, no thread's work, no connection."""
    create_app(make_settings(tmp_path, {"projects": {"a": {"policy": str(tmp_path / "p")}}}, teacher.url), {})
    assert list(tmp_path.iterdir()) == []
    assert teacher.calls == []


def test_a_missing_key_is_found_before_anything_starts() -> None:
    """The environment is part of the configuration."""
    tree = {"upstreams": {"a": {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "KEY"}}}
    with pytest.raises(SettingsError, match="the environment has no KEY"):
        create_app(build_settings(tree, {}), {})


def test_two_gateways_fit_in_one_process(tmp_path: Path, policy_folder: Path, handled_text: str) -> None:
    """Each has its own projects, metrics and store."""
    projects = {"bank": {"policy": str(policy_folder)}}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with (
        ThreadedGateway(make_settings(tmp_path / "first", {"projects": projects})) as first,
        ThreadedGateway(make_settings(tmp_path / "second", {"projects": {"shop": projects["bank"]}})) as second,
    ):
        assert httpx.post(f"{first.url}/bank/classify", json={"input": handled_text}).status_code == 200
        assert httpx.post(f"{second.url}/bank/classify", json={"input": handled_text}).status_code == 404
        assert first.metric("tracer_requests_total", project="bank", lane="surrogate", reason="") == 1
        assert second.metric("tracer_requests_total", project="bank", lane="surrogate", reason="") == 0


def test_a_gateway_that_has_stopped_has_let_go_of_everything(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Its connections to the teacher are closed, and another can be started on the same store."""
    settings = make_settings(tmp_path, {}, teacher.url)
    for _ in range(2):
        with ThreadedGateway(settings) as gateway:
            assert httpx.get(f"{gateway.base_url}/models").status_code == 200
