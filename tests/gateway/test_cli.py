"""`tracer serve` and `tracer check-config` as a user runs them."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ROOT, GatewayProcess


def _tracer(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", *map(str, arguments)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_policy_alone_is_a_decision_server_and_says_so(
    tmp_path: Path, policy_folder: Path, handled_text: str, deferred_text: str
) -> None:
    """One project named `default`, and what happens to deferred calls."""
    with GatewayProcess(tmp_path, policy_folder) as gateway:
        assert gateway.banner.startswith(f"tracer gateway on {gateway.url} (OpenAI base URL {gateway.base_url})")
        assert "project default: live" in gateway.banner
        assert "decision server: no upstream" in gateway.banner
        body = {"model": "tracer/default", "messages": [{"role": "user", "content": handled_text}]}
        assert httpx.post(f"{gateway.base_url}/chat/completions", json=body).status_code == 200
        body["messages"] = [{"role": "user", "content": deferred_text}]
        assert httpx.post(f"{gateway.base_url}/chat/completions", json=body).status_code == 503
        assert gateway.terminate() == 0


def test_an_upstream_project_and_teacher_can_be_given(
    tmp_path: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Without a policy yet: every call is forwarded, and learned."""
    arguments = ["--upstream", teacher.url, "--project", "bank", "--teacher", "gpt-teacher"]
    with GatewayProcess(tmp_path, *arguments) as gateway:
        assert "project bank: observing; forwards to default" in gateway.banner
        body = {"model": "tracer/bank", "messages": [{"role": "user", "content": deferred_text}]}
        assert httpx.post(f"{gateway.base_url}/chat/completions", json=body).status_code == 200
        assert teacher.calls[0].json["model"] == "gpt-teacher"
        assert gateway.terminate() == 0
    store = Store.open(f"sqlite:///{tmp_path}/.tracer/traces.db")
    assert store.count("bank") == 1
    store.close()


def test_the_default_policy_is_the_folder_fit_writes(tmp_path: Path, policy_folder: Path) -> None:
    """`.tracer` in the working directory."""
    (tmp_path / ".tracer").symlink_to(policy_folder)
    with GatewayProcess(tmp_path) as gateway:
        assert "project default: live" in gateway.banner


def test_with_nothing_to_serve_it_says_what_to_do(tmp_path: Path) -> None:
    """Exit 1 and the commands that would help."""
    for arguments in [[], ["absent"]]:
        done = _tracer(tmp_path, "serve", *arguments)
        assert done.returncode == 1
        assert "tracer fit TRACES" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_bad_configuration_exits_with_its_key(tmp_path: Path) -> None:
    """serve and check-config say the same."""
    (tmp_path / "bad.yaml").write_text(
        "server: {prot: 1}\nupstreams: {a: {base_url: 'http://x/v1', api_key_env: NOPE}}\n"
    )
    for command in (["serve", "--config", "bad.yaml"], ["check-config", "bad.yaml"]):
        done = _tracer(tmp_path, *command)
        assert done.returncode == 1
        assert "server.prot: unknown key; did you mean 'port'?" in done.stderr
        assert "Traceback" not in done.stderr


def test_check_config_takes_the_example(tmp_path: Path) -> None:
    """The example is valid as it is, and a key that is not in the environment is named."""
    example = (ROOT / "config.example.yaml").read_text()
    assert _tracer(tmp_path, "check-config", ROOT / "config.example.yaml").returncode == 0
    (tmp_path / "key.yaml").write_text(example.replace("api_key_env: null", "api_key_env: OPENAI_API_KEY"))
    missing = _tracer(tmp_path, "check-config", "key.yaml")
    assert "upstreams.openai.api_key_env: the environment has no OPENAI_API_KEY" in missing.stderr
    (tmp_path / "good.yaml").write_text("projects: {a: {policy: p}}")
    done = _tracer(tmp_path, "check-config", "good.yaml")
    assert (done.returncode, done.stdout) == (0, "good.yaml: valid; 1 projects, 0 upstreams\n")


def test_a_configuration_file_and_single_options_do_not_mix(tmp_path: Path) -> None:
    """Two sources of the same thing would leave one unread."""
    (tmp_path / "c.yaml").write_text("")
    done = _tracer(tmp_path, "serve", "--config", "c.yaml", "--upstream", "http://x/v1")
    assert done.returncode == 1
    assert "named in the file" in done.stderr


def test_host_and_port_override_the_file(tmp_path: Path) -> None:
    """They belong to the machine rather than to the gateway."""
    (tmp_path / "c.yaml").write_text("server: {port: 1, host: 203.0.113.1}")
    with GatewayProcess(tmp_path, "--config", "c.yaml", "--host", "::1", "--port", "0") as gateway:
        assert gateway.url.startswith("http://[::1]:")
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200


def test_a_port_that_is_taken_is_an_error(tmp_path: Path, policy_folder: Path) -> None:
    """With the address in the message."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _tracer(tmp_path, "serve", policy_folder, "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_calls_in_flight_finish(tmp_path: Path, teacher: ScriptedTeacher, number: signal.Signals) -> None:
    """The call is answered, its trace is stored, and the exit code is 0."""
    teacher.script = "hang"
    with GatewayProcess(tmp_path, "--upstream", teacher.url, "--project", "bank", "--teacher", "m") as gateway:
        body = b'{"model":"tracer/bank","messages":[{"role":"user","content":"hi"}]}'
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            assert teacher.arrived.wait(5)
            gateway.process.send_signal(number)
            _wait_until_refusing(gateway.port)
            teacher.released.set()
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert gateway.process.wait(10) == 0
    store = Store.open(f"sqlite:///{tmp_path}/.tracer/traces.db")
    assert store.count("bank") == 1
    store.close()


def test_shutting_down_takes_no_longer_than_it_may(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`shutdown_timeout` bounds calls that never end; theirs are closed upstream."""
    teacher.script = "hang"
    (tmp_path / "c.yaml").write_text(
        f"server: {{shutdown_timeout: 1}}\nupstreams: {{t: {{base_url: '{teacher.url}'}}}}\ndefault_upstream: t\n"
    )
    with GatewayProcess(tmp_path, "--config", "c.yaml") as gateway:
        body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            assert teacher.arrived.wait(5)
            assert gateway.terminate() == 0
        assert teacher.disconnected.wait(5)


def test_requests_are_logged_only_where_asked_for_and_never_their_text(
    tmp_path: Path, policy_folder: Path, deferred_text: str
) -> None:
    """`access_log` gives a line a request; neither text nor key stands in any log."""
    for asked in (False, True):
        folder = tmp_path / str(asked)
        folder.mkdir()
        tree = f"server: {{access_log: {str(asked).lower()}}}\nprojects: {{a: {{policy: '{policy_folder}'}}}}\n"
        (folder / "c.yaml").write_text(tree)
        with GatewayProcess(folder, "--config", "c.yaml") as gateway:
            body = {"model": "tracer/a", "messages": [{"role": "user", "content": deferred_text}]}
            headers = {"authorization": "Bearer sk-secret"}
            httpx.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers)
            assert gateway.terminate() == 0
            assert ("POST /v1/chat/completions" in gateway.log()) == asked
            assert deferred_text not in gateway.log()
            assert "sk-secret" not in gateway.log()


def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    """`keep_alive_timeout`."""
    (tmp_path / "c.yaml").write_text("server: {keep_alive_timeout: 1}")
    with (
        GatewayProcess(tmp_path, "--config", "c.yaml") as gateway,
        socket.create_connection(("127.0.0.1", gateway.port)) as connection,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        started = time.monotonic()
        connection.settimeout(10)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        assert received.endswith(b'{"status":"ok"}')
        assert time.monotonic() - started < 5


def _wait_until_refusing(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError("the gateway went on accepting connections")
