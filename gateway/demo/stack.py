"""The running pieces: a scripted teacher, the gateway in front of it, and the learning a user would start by hand.

application -> gateway (`tracer serve`) -> scripted teacher
                  |  forwarded calls become traces
                  v
               store -> `tracer traces export` -> `tracer fit` / `tracer update` -> policy folder -> gateway
"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.demo import processes, teacher
from gateway.demo.driver import Application
from gateway.demo.processes import Child
from policies.artifact import read_version

TEACHER_MODEL = "gpt-4.1-mini"
_PICK_UP_SECONDS = 30.0
_UPSTREAM = "scripted-teacher"


@dataclass(frozen=True, slots=True)
class Task:
    """The decision to learn. `labels` is the teacher's script; `median` (s) and `spread` its time, see `Script`."""

    project: str
    system_prompt: str
    labels: Mapping[str, str]
    target: float
    median: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Learned:
    """What one round of learning came to: what `tracer fit --json` or `tracer update --json` printed."""

    verdict: Mapping[str, Any]

    @property
    def refused(self) -> bool:
        """The gate did not certify."""
        return bool(self.verdict["refused"])


class Stack:
    """Teacher and gateway as processes, with everything they write in one folder. DemoError where one fails."""

    def __init__(self, task: Task, folder: Path, on_command: Callable[[str], None] = lambda _: None) -> None:
        self.task = task
        self.folder = folder.resolve()
        self.policy = self.folder / "policy"
        self.store_url = f"sqlite:///{self.folder / 'traces.db'}"
        self._on_command = on_command
        self._teacher_port = processes.free_port()
        self._gateway_port = processes.free_port()
        self._children = ExitStack()
        self._teacher = Child("the scripted teacher", self._teacher_argv(), self.folder / "teacher.log")
        self._gateway = Child("the gateway", self._gateway_argv(), self.folder / "gateway.log")

    def __enter__(self) -> Self:
        teacher.write_script(self.folder / "script.jsonl", self.task.labels)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self._config(), sort_keys=False), encoding="utf-8")
        with ExitStack() as started:
            started.enter_context(self._teacher)
            started.enter_context(self._gateway)
            _wait_until_ready(self._teacher, self._teacher_port)
            _wait_until_ready(self._gateway, self._gateway_port)
            self._children = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    @property
    def gateway_log(self) -> str:
        """The tail of what the gateway wrote."""
        return self._gateway.tail()

    def application(self, concurrency: int) -> Application:
        """A client of this gateway. Nothing in it knows of the gateway but the address."""
        base_url = f"http://127.0.0.1:{self._gateway_port}/v1"
        return Application(base_url, TEACHER_MODEL, self.task.system_prompt, concurrency)

    def learn(self, forwarded: int) -> Learned:
        """Export, then fit (the first time) or update, and wait until the gateway serves the result.

        `forwarded` is how many calls were forwarded since the start: all of them are to be in the store.
        """
        stored = "tracer_traces_stored_total"
        self._gateway.wait_until(lambda: self._metric(stored) >= forwarded, "all traces were stored")
        traces, project = self.folder / "traces.jsonl", self.task.project
        self._tracer("traces", "export", "--store", self.store_url, "--project", project, "--out", str(traces))
        if read_version(self.policy) is None:
            argv = ["fit", str(traces), "--target", f"{self.task.target:g}", "--out", str(self.policy)]
        else:
            argv = ["update", str(traces), "--policy", str(self.policy)]
        verdict = orjson.loads(self._tracer(*argv, json=True))
        self._wait_for_pick_up()
        return Learned(verdict)

    def _wait_for_pick_up(self) -> None:
        version = read_version(self.policy) or ""
        labels = {"project": self.task.project, "version": version}
        self._gateway.wait_until(
            lambda: self._metric("tracer_policy_info", labels) == 1.0,
            f"it served policy {version}",
            _PICK_UP_SECONDS,
        )

    def _tracer(self, *arguments: str, json: bool = False) -> str:
        self._on_command(self._shown(arguments))
        return processes.run([sys.executable, "-m", "tracer", *arguments, *(["--json"] if json else [])])

    def _shown(self, arguments: Sequence[str]) -> str:
        return "tracer " + shlex.join(argument.replace(f"{self.folder}/", "") for argument in arguments)

    def _metric(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        text = (processes.get(self._gateway_port, "/metrics") or b"").decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next((s.value for s in samples if s.name == name and s.labels == (labels or {})), 0.0)

    def _teacher_argv(self) -> list[str]:
        options = {"--port": self._teacher_port, "--median": self.task.median, "--spread": self.task.spread}
        flags = [str(part) for option in options.items() for part in option]
        return [sys.executable, "-m", "gateway.demo.teacher", str(self.folder / "script.jsonl"), *flags]

    def _gateway_argv(self) -> list[str]:
        config = str(self.folder / "config.yaml")
        return [sys.executable, "-m", "tracer", "serve", "--config", config, "--port", str(self._gateway_port)]

    def _config(self) -> dict[str, Any]:
        return {
            "server": {"policy_poll_seconds": 0.2},
            "store": {"url": self.store_url, "spool": str(self.folder / "spool.jsonl")},
            "upstreams": {_UPSTREAM: {"base_url": f"http://127.0.0.1:{self._teacher_port}/v1"}},
            "default_upstream": _UPSTREAM,
            "projects": {
                self.task.project: {
                    "policy": str(self.policy),
                    # Four small days are too short for a candidate to prove itself on live calls first.
                    "promotion": "immediate",
                    # The figures are of the application's own calls: audits would cost as well, and store traces.
                    "audit": {"rate": 0},
                    "match": {"system_prompt": self.task.system_prompt, "mode": "exact"},
                }
            },
        }


def _wait_until_ready(child: Child, port: int) -> None:
    child.wait_until(lambda: processes.get(port, teacher.HEALTH_PATH) is not None, "it was ready")
