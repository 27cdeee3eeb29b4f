"""Every command and program of the README runs, in the README's order, against a scripted teacher."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import openai
import pytest
import yaml

from tests.scripted_teacher import ScriptedTeacher
from tests.traces_maker import make_traces, write

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_PROVIDER = "https://api.openai.com/v1"
_STOLEN = "my card was stolen, please block it"


@dataclass(frozen=True)
class Block:
    """One fenced block: its language and its text."""

    language: str
    text: str


def _blocks() -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]


def _block(language: str, holding: str) -> str:
    found = [block.text for block in _blocks() if block.language == language and holding in block.text]
    assert len(found) == 1, f"{len(found)} {language} blocks hold {holding!r}"
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Workspace:
    """A folder in which the README is followed, with its addresses replaced by local ones."""

    def __init__(self, folder: Path, teacher: str) -> None:
        self.folder, self._teacher = folder, teacher
        self.port = _free_port()
        self.gateway: subprocess.Popen[bytes] | None = None
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OPENAI_API_KEY": "sk-test",
        }

    def localised(self, text: str) -> str:
        """The text with the provider and the port of this run."""
        return text.replace(_PROVIDER, self._teacher).replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def shell(self, text: str) -> str:
        """Run a block of commands and return what it printed."""
        return self._run(["bash", "-euo", "pipefail", "-c", self.localised(text)])

    def python(self, text: str) -> str:
        """Run a Python program and return what it printed."""
        return self._run([sys.executable, "-c", self.localised(text)])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, text: str) -> None:
        """Start the gateway with the README's own command line, on this run's port, in place of the one before."""
        self.stop()
        command = [*text.split(), "--port", str(self.port)]
        assert command[:2] == ["tracer", "serve"]
        with (self.folder / "gateway.log").open("ab") as log:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        self.wait_until("/readyz", "")

    def wait_until(self, path: str, holds: str) -> None:
        """Wait until a page of the gateway holds a text."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.gateway is not None
            assert self.gateway.poll() is None, (self.folder / "gateway.log").read_text()
            try:
                with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                    if holds in answer.read().decode():
                        return
            except OSError:
                pass
            time.sleep(0.05)
        pytest.fail(f"{path} never said {holds!r}\n{(self.folder / 'gateway.log').read_text()}")

    def stop(self) -> None:
        """End the gateway."""
        if self.gateway is not None:
            self.gateway.terminate()
            assert self.gateway.wait(timeout=30) == 0
            self.gateway = None


def _intent(text: str) -> str:
    return _TRUTH.get(text, "card_lost")


_TRUTH = {trace.input: trace.teacher for trace in make_traces(900, blur=0.0)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A folder with the README's `tracer.yaml`, beside a scripted teacher."""
    with ScriptedTeacher(label_of=_intent) as teacher:
        place = Workspace(tmp_path_factory.mktemp("readme"), teacher.url)
        (place.folder / "tracer.yaml").write_text(place.localised(_block("yaml", "# tracer.yaml")))
        yield place
        place.stop()


def _send_history(workspace: Workspace) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{workspace.port}/v1", api_key="sk-test")
    system = yaml.safe_load((workspace.folder / "tracer.yaml").read_text())["projects"]["support"]["match"][
        "system_prompt"
    ]
    for text in _TRUTH:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        client.chat.completions.create(model="gpt-4.1-mini", messages=messages)  # type: ignore[arg-type]
    client.close()
    workspace.wait_until("/metrics", f"tracer_traces_stored_total {len(_TRUTH) + 1}.0")


def test_the_quickstart_ends_with_a_handled_call(workspace: Workspace) -> None:
    """Serve, call, export, fit; the same program that was answered by the teacher is then answered locally; update."""
    workspace.shell(_block("sh", "tracer check-config"))
    workspace.serve(_block("sh", "tracer serve --config").strip())
    program = _block("python", "base_url=")
    assert workspace.python(program).split() == ["card_lost", "teacher"]
    _send_history(workspace)
    assert "certified" in workspace.shell(
        _block("sh", "tracer traces export --project support --out traces.jsonl\ntracer fit")
    )
    workspace.wait_until("/health", '"shadow":"2')
    assert "support: live" in workspace.shell(_block("sh", "tracer promote support\n"))
    workspace.wait_until("/health", '"live"')
    assert workspace.python(program).split() == ["card_lost", "surrogate"]
    assert "Frontier" in workspace.shell(_block("sh", "tracer update"))
    workspace.wait_until("/health", '"shadow":"2')
    printed = workspace.shell(_block("sh", "tracer rollback support"))
    assert [state in printed for state in ("(promoted)", "(rolled back to)", "support: paused", "resumed")] == [
        True
    ] * 4
    assert workspace.python(program).split() == ["card_lost", "surrogate"]


def test_the_sidecar_answers_curl_and_javascript(workspace: Workspace) -> None:
    """The decision server, asked by curl and by Node's fetch."""
    if not (workspace.folder / "policies").is_dir():
        pytest.skip("needs the policy that the quickstart makes")
    workspace.serve(_block("sh", "tracer serve policies/support").strip())
    assert '"card_lost"' in workspace.shell(_block("sh", "curl"))
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    program = workspace.folder / "classify.mjs"
    program.write_text(workspace.localised(_block("js", "fetch(")))
    done = subprocess.run([node, program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "card_lost"


def test_scan_fit_report_and_evaluate_run_on_the_exported_traces(workspace: Workspace) -> None:
    """The day-one read, a stricter fit, its plot, and calls it has not seen."""
    if not (workspace.folder / "traces.jsonl").is_file():
        pytest.skip("needs the traces that the quickstart exports")
    assert "saved a month" in workspace.shell(_block("sh", "tracer scan"))
    write(workspace.folder / "fresh.jsonl", make_traces(200, seed=3, blur=0.0))
    printed = workspace.shell(_block("sh", "--assume strictest"))
    assert "certified" in printed
    assert "200 calls: coverage" in printed
    assert "<svg" in (workspace.folder / "frontier.html").read_text(encoding="utf-8")


def test_the_python_example_runs(workspace: Workspace) -> None:
    """Fit, load and predict from Python, on the traces that the quickstart exported."""
    if not (workspace.folder / "traces.jsonl").is_file():
        pytest.skip("needs the traces that the quickstart exports")
    assert "card_lost handled" in workspace.python(_block("python", "import tracer"))


def test_activate_is_a_command_of_the_environment() -> None:
    """`. .venv/bin/activate` is there after `make`, in whatever environment these tests run."""
    assert "activate" in _block("sh", "activate")
    if sys.prefix == sys.base_prefix:
        pytest.skip("the tests do not run in a virtual environment")
    assert (Path(sys.prefix) / "bin" / "activate").is_file()


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    """`make demo` and `make test` parse; CI runs the second, tests/e2e/test_demo.py what the first runs."""
    for target in re.findall(r"^make (\w+)", _block("sh", "make demo"), re.MULTILINE):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_scrape_configuration_points_at_the_gateway() -> None:
    """It is YAML in Prometheus' form, and names the default port."""
    jobs = yaml.safe_load(_block("yaml", "scrape_configs"))["scrape_configs"]
    assert jobs[0]["static_configs"][0]["targets"] == ["127.0.0.1:8000"]


def test_the_container_builds_and_serves(workspace: Workspace) -> None:
    """The image of the Dockerfile; where no engine runs, at least every copied path exists."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no container engine is running")
    build = _block("sh", "docker build").splitlines()[0]
    subprocess.run(["bash", "-c", build], cwd=ROOT, check=True, timeout=900, env=workspace.environment)


def test_every_block_is_covered() -> None:
    """A new block in the README needs a test above."""
    holding = ["make demo", "activate", "# tracer.yaml", "tracer serve --config", "base_url=", "tracer fit"]
    holding += [
        "tracer update",
        "tracer scan",
        "tracer serve policies/support",
        "curl",
        "docker build",
        "scrape_configs",
    ]
    holding += ["import tracer", "fetch(", "check-config", "tracer promote support"]
    for block in _blocks():
        if block.language != "text":
            assert sum(mark in block.text for mark in holding) >= 1, block.text


def test_the_files_it_links_to_exist() -> None:
    """No dead link within the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
