"""`tracer keys` as a user runs it, and a gateway process that takes the keys."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ROOT, GatewayProcess


def _tracer(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", *map(str, arguments)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    """The key alone on stdout; the list knows everything but the key and its hash."""
    made = _tracer(tmp_path, "keys", "create", "--project", "support", "--project", "bank", "--name", "ci")
    key_id = made.stdout.split("_")[1]
    assert (made.returncode, made.stdout.count("\n"), made.stdout[:4]) == (0, 1, "trc_")
    assert f"key {key_id} for bank, support" in made.stderr
    timed = _tracer(tmp_path, "keys", "create", "--all", "--expires", "30")
    assert "for every project, until 20" in timed.stderr
    listed = _tracer(tmp_path, "keys", "list").stdout
    assert f"{key_id}  " in listed
    assert "never ends  bank, support  ci" in listed
    shown = json.loads(_tracer(tmp_path, "keys", "list", "--json").stdout)
    assert sorted(shown[key_id]["projects"]) == ["bank", "support"]
    assert set(shown[key_id]) == {"name", "projects", "created", "expires", "expired"}
    digest = json.loads((tmp_path / ".tracer/keys.json").read_bytes())["keys"][key_id]["sha256"]
    assert digest not in listed + json.dumps(shown)
    assert _tracer(tmp_path, "keys", "revoke", made.stdout.strip()).returncode == 0
    again = _tracer(tmp_path, "keys", "revoke", key_id)
    assert (again.returncode, again.stderr) == (1, f".tracer/keys.json: there is no key {key_id}\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["create"], "--project NAME (may be repeated), or --all"),
        (["create", "--all", "--project", "a"], "--project NAME (may be repeated), or --all"),
        (["create", "--project", "a/b"], "'a/b' cannot be a project's name"),
        (["list", "--keys", "bad.json"], "bad.json: not a keys file"),
        (["create", "--all", "--keys", "bad.json"], "bad.json: not a keys file"),
        (["revoke", "a", "--keys", "bad.json"], "bad.json: not a keys file"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, arguments: list[str], hint: str) -> None:
    """Exit 1, nothing on stdout."""
    (tmp_path / "bad.json").write_text("{")
    done = _tracer(tmp_path, "keys", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_without_a_file_of_settings_takes_keys(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """On every address, once somebody checks who asks; the banner says so."""
    key = _tracer(tmp_path, "keys", "create", "--project", "bank", "--keys", "k.json").stdout.strip()
    arguments = [
        "--project",
        "bank",
        "--promotion",
        "immediate",
        "--upstream",
        teacher.url,
        "--host",
        "0.0.0.0",
        "--access",
        "keys",
    ]
    refused = _tracer(tmp_path, "serve", policy_folder, *arguments)
    assert refused.returncode == 1
    assert "upstreams.default.api_key_env: is required with access.mode keys" in refused.stderr
    arguments += ["--keys", "k.json", "--api-key-env", ""]
    with GatewayProcess(tmp_path, policy_folder, *arguments) as gateway:
        assert "access: keys of k.json" in gateway.banner
        url = f"http://127.0.0.1:{gateway.port}/bank/classify"
        assert httpx.post(url, json={"input": handled_text}).status_code == 401
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(url, json={"input": handled_text}, headers=headers).json()["label"]


def test_an_open_address_without_keys_is_refused(tmp_path: Path, policy_folder: Path) -> None:
    """By serve, from its options or the file, and by check-config."""
    (tmp_path / "c.yaml").write_text("server: {host: 0.0.0.0}")
    for command in (
        ["serve", policy_folder, "--host", "0.0.0.0"],
        ["serve", "--config", "c.yaml"],
        ["check-config", "c.yaml"],
    ):
        done = _tracer(tmp_path, *command)
        assert done.returncode == 1
        assert "server.host: '0.0.0.0' is not loopback" in done.stderr
        assert "tracer keys create" in done.stderr
    done = _tracer(tmp_path, "serve", "--config", "c.yaml", "--access", "keys")
    assert "access are named in the file" in done.stderr
