"""The YAML file: what is read, what is refused, and that the example tells the truth."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from gateway.errors import SettingsError
from gateway.settings import (
    AuditSettings,
    MatchSettings,
    ProjectSettings,
    Settings,
    UpstreamSettings,
    api_key,
    build_settings,
    load_settings,
)
from tests.serving import ROOT

UPSTREAM = {"base_url": "http://localhost:1/v1"}
PROJECT = {"policy": ".tracer"}


def _problem(tree: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        build_settings(tree, {})
    return str(caught.value)


def test_an_empty_file_is_a_gateway_with_every_default(tmp_path: Path) -> None:
    """Nothing is required at the top."""
    file = tmp_path / "config.yaml"
    file.write_text("")
    assert load_settings(file, {}) == Settings()


@pytest.mark.parametrize(
    ("tree", "key", "hint"),
    [
        ({"sever": {}}, "sever", "did you mean 'server'?"),
        ({"server": {"prot": 1}}, "server.prot", "did you mean 'port'?"),
        ({"upstreams": {"a": UPSTREAM | {"training": 1}}}, "upstreams.a.training", "training_allowed"),
        ({"projects": {"a": PROJECT | {"polcy": 1}}}, "projects.a.polcy", "did you mean 'policy'?"),
        (
            {"projects": {"a": PROJECT | {"match": {"system_prompt": "x", "kind": "regex"}}}},
            "projects.a.match.kind",
            "mode, system_prompt",
        ),
        ({"projects": {"audit": PROJECT | {"polcy": 1}}}, "projects.audit.polcy", "did you mean 'policy'?"),
        ({"projects": {"a": PROJECT | {"audit": {"rat": 1}}}}, "projects.a.audit.rat", "did you mean 'rate'?"),
        ({"store": {"zzz": 1}}, "store.zzz", "valid keys: queue_size, spool, url"),
    ],
)
def test_an_unknown_key_is_named_with_what_would_be_valid(tree: Any, key: str, hint: str) -> None:
    """The dotted key comes first, then the closest name or the list."""
    problem = _problem(tree)
    assert problem.startswith(f"{key}: unknown key")
    assert hint in problem


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ([], "should be a mapping"),
        ({"server": {"port": "eight"}}, "server.port: "),
        ({"server": {"port": 70000}}, "server.port: "),
        ({"server": {"max_body_bytes": 0}}, "server.max_body_bytes: "),
        ({"projects": {"a": {}}}, "projects.a.policy: is required"),
        ({"projects": {"v1": PROJECT}}, "projects: 'v1' cannot be a name"),
        ({"projects": {"a/b": PROJECT}}, "projects: 'a/b' cannot be a name"),
        ({"projects": {"a": PROJECT | {"multi_turn": "all"}}}, "projects.a.multi_turn: "),
        ({"projects": {"a": PROJECT | {"upstream": "x"}}}, "projects.a.upstream: 'x' is not configured; known: none"),
        ({"default_upstream": "x", "upstreams": {"y": UPSTREAM}}, "default_upstream: 'x' is not configured; known: y"),
        ({"default_project": "x"}, "default_project: 'x' is not configured"),
        ({"projects": {"a": PROJECT | {"audit": {"rate": 1.5}}}}, "projects.a.audit.rate: "),
        ({"projects": {"a": PROJECT | {"audit": {"daily_calls": -1}}}}, "projects.a.audit.daily_calls: "),
        ({"projects": {"a": PROJECT | {"audit": {"timeout": 0}}}}, "projects.a.audit.timeout: "),
        (
            {"projects": {"a": PROJECT | {"audit": {"first_rate": 0.01}}}},
            "projects.a.audit: first_rate (0.01) should be at least rate (0.02)",
        ),
        (
            {"projects": {"a": PROJECT | {"audit": {"most_rate": 0.05}}}},
            "projects.a.audit: most_rate (0.05) should be at least first_rate (0.1)",
        ),
        (
            {"projects": {"a": PROJECT | {"audit": {"daily_usd": 1, "price_input": 1}}}},
            "projects.a.audit: daily_usd needs price_input and price_output",
        ),
        ({"upstreams": {"a": {}}}, "upstreams.a: needs base_url"),
        ({"upstreams": {"a": {"base_url": "localhost:1"}}}, "upstreams.a.base_url: should be http(s)://"),
        ({"upstreams": {"a": UPSTREAM | {"read_timeout": 0}}}, "upstreams.a.read_timeout: "),
        ({"upstreams": {"a": UPSTREAM | {"retries": -1}}}, "upstreams.a.retries: "),
        (
            {"upstreams": {"a": {"base_url": "http://me:pw@host/v1"}}},
            "upstreams.a.base_url: should hold no credentials",
        ),
        (
            {"upstreams": {"a": {"base_url": "http://me@host/v1"}}},
            "name the variable that holds the key in api_key_env",
        ),
        (
            {"projects": {"a": PROJECT | {"match": {"system_prompt": "(", "mode": "regex"}}}},
            "projects.a.match: system_prompt is not a regular expression",
        ),
    ],
)
def test_a_wrong_value_is_named(tree: Any, expected: str) -> None:
    """The message starts with the key at fault."""
    assert _problem(tree).startswith(expected) or expected in _problem(tree).splitlines()[0]


OTHER = {"base_url": "http://elsewhere/v1", "api_key_env": "KEY"}


@pytest.mark.parametrize(
    ("fallbacks", "expected"),
    [
        ([{"upstream": "c"}], "upstreams.a.fallbacks.0.upstream: 'c' is not configured; known: a, b"),
        ([{"upstream": "a"}], "upstreams.a.fallbacks.0: is the upstream itself"),
        ([{"upstream": "b"}, {"upstream": "b"}], "upstreams.a.fallbacks.1: is there twice"),
        ([{"upstream": "b", "modle": "x"}], "upstreams.a.fallbacks.0.modle: unknown key; did you mean 'model'?"),
        ([{"model": "x"}], "upstreams.a.fallbacks.0.upstream: is required"),
    ],
)
def test_a_wrong_fallback_is_named(fallbacks: list[dict[str, str]], expected: str) -> None:
    """By its place in the list."""
    tree = {"upstreams": {"a": UPSTREAM | {"fallbacks": fallbacks}, "b": OTHER}}
    assert expected in _problem(tree)


def test_a_clients_key_cannot_be_sent_to_another_provider() -> None:
    """A fallback elsewhere has a key of its own; one at the same host may take the client's."""
    fallbacks = {"fallbacks": [{"upstream": "b"}]}
    keyless = {"base_url": OTHER["base_url"]}
    assert "upstreams.b.api_key_env: is required of a fallback of 'a'" in _problem(
        {"upstreams": {"a": UPSTREAM | fallbacks, "b": keyless}}
    )
    build_settings({"upstreams": {"a": UPSTREAM | fallbacks, "b": OTHER}}, {})
    build_settings({"upstreams": {"a": UPSTREAM | fallbacks, "b": {"base_url": "http://localhost:1/other"}}}, {})
    build_settings({"upstreams": {"a": UPSTREAM | {"fallbacks": [{"upstream": "a", "model": "small"}]}}}, {})


def test_every_problem_is_told_at_once() -> None:
    """One line a problem."""
    assert len(_problem({"server": {"port": -1, "prot": 1}, "store": {"queue_size": 0}}).splitlines()) == 3


def test_values_are_not_repeated_in_errors() -> None:
    """A key pasted into the wrong place does not reach the log."""
    assert "sk-secret" not in _problem(
        {"upstreams": {"a": UPSTREAM | {"api_key": "sk-secret", "provider": ["sk-secret"]}}}
    )


def test_variables_are_expanded_in_strings() -> None:
    """`${NAME}` is replaced wherever a string stands; a missing one is named with its key."""
    tree = {"store": {"url": "postgresql://u:${PASSWORD}@db/t"}}
    assert build_settings(tree, {"PASSWORD": "s3"}).store.url == "postgresql://u:s3@db/t"
    assert _problem(tree) == "store.url: the environment has no PASSWORD"


def test_an_api_key_comes_from_the_environment(tmp_path: Path) -> None:
    """The file names a variable; one that is not set is found before the gateway starts."""
    file = tmp_path / "config.yaml"
    file.write_text("upstreams: {a: {base_url: 'http://localhost:1/v1', api_key_env: KEY}}")
    settings = load_settings(file, {"KEY": "sk-1"})
    assert api_key(settings, "a", {"KEY": "sk-1"}) == "sk-1"
    with pytest.raises(SettingsError, match=r"upstreams\.a\.api_key_env: the environment has no KEY"):
        load_settings(file, {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"server: {port: 1", "not valid YAML"),
        (b"server:\n  port: 1\n  port: 2\n", "'port' is given twice"),
        (b"\xff\xfe", "config.yaml"),
    ],
)
def test_a_file_that_is_not_yaml_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    """The message names the file."""
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=expected):
        load_settings(file, {})
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        load_settings(tmp_path / "absent.yaml", {})


def test_settings_cannot_be_changed() -> None:
    """They are a value."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().server.port = 1


def test_the_only_project_is_the_default_one() -> None:
    """`default_project` is needed only where there are several."""
    assert build_settings({"projects": {"a": PROJECT}}, {}).project_served() == "a"
    two = {"projects": {"a": PROJECT, "b": PROJECT}}
    assert build_settings(two, {}).project_served() is None
    assert build_settings(two | {"default_project": "b"}, {}).project_served() == "b"


def test_the_example_lists_every_setting_at_its_default() -> None:
    """config.example.yaml and settings.py cannot drift apart."""
    text = (ROOT / "config.example.yaml").read_text()
    tree = yaml.safe_load(text)
    build_settings(tree, {})
    assert list(tree) == list(Settings.model_fields)
    _compare(tree["server"], Settings().server, "server")
    _compare(tree["store"], Settings().store, "store")
    upstream = tree["upstreams"]["openai"]
    _compare(upstream, UpstreamSettings(base_url=upstream["base_url"]), "upstream")
    project = tree["projects"]["support"]
    assert list(project["match"]) == list(MatchSettings.model_fields)
    _compare(project["audit"], AuditSettings(), "audit")
    given = {"policy", "teacher", "match", "prompt"}
    assert set(project) == set(ProjectSettings.model_fields)
    defaults = ProjectSettings(policy=project["policy"]).model_dump(mode="json")
    assert {k: v for k, v in project.items() if k not in given} == {k: v for k, v in defaults.items() if k not in given}


def _compare(given: dict[str, Any], defaults: BaseModel, where: str) -> None:
    assert given == defaults.model_dump(mode="json"), where
    assert list(given) == list(type(defaults).model_fields), where
