"""What `peers.py` installs: LiteLLM, Portkey and tracer-llm, each in a folder of its own, kept between runs."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import frontier, wrk
from gateway.demo import processes
from gateway.demo.errors import DemoError

# 1.110.2 and some before it need a `litellm-proxy` or `litellm-proxy-extras` that is not on PyPI.
LITELLM = "1.106.12"
PORTKEY = "1.15.2"
TRACER_LLM = frontier.PEER


class NotInstalledError(Exception):
    """A server cannot be started here; the message says what to install."""


def install_litellm(peers: Path) -> Path:
    """The Python of LiteLLM's environment, made where there is none."""
    folder = peers / f"litellm-{LITELLM}"
    python = folder / "bin" / "python"
    whole = "from importlib.metadata import version as v; print(v('litellm'), v('fastapi'))"
    if _said(str(python), "-I", "-c", whole).startswith(LITELLM):
        return python
    print(f"installing litellm[proxy] {LITELLM} into {folder}", file=sys.stderr)
    _install([sys.executable, "-m", "venv", str(folder)])
    _install([str(python), "-m", "pip", "install", "--quiet", f"litellm[proxy]=={LITELLM}"])
    return python


def install_portkey(peers: Path) -> Path:
    """Portkey's start script, installed where there is none. Its packages' own install scripts are not run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NotInstalledError("node (20 or newer) and npm are missing (Debian: apt-get install nodejs npm)")
    folder = peers / f"portkey-{PORTKEY}"
    script = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.is_file():
        print(f"installing @portkey-ai/gateway {PORTKEY} into {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
        _install(["npm", "install", *options, f"@portkey-ai/gateway@{PORTKEY}"])
    return script


def fit_tracer_llm(peers: Path) -> tuple[Path, Path, Path]:
    """tracer-llm's Python, its policy for 0.95, and the vectors of `traffic.jsonl` as `.npy`; made where missing.

    As in `frontier.py`; a fit takes a minute or more and is kept under `peers`.
    """
    if not frontier.MODEL.is_dir():
        raise NotInstalledError(f"tracer-llm reads embeddings: no {frontier.MODEL.name} in TRACER_MODELS")
    python = frontier.install_peer(peers / f"tracer-llm-{frontier.PEER}")
    splits, _ = frontier.prepare("banking77", peers, with_vectors=True)
    traces, traffic = splits["traces"].vectors, splits["traffic"].vectors
    assert traces is not None
    assert traffic is not None
    policy = peers / f"tracer-llm-{frontier.PEER}-policy-{hashlib.sha256(traces.read_bytes()).hexdigest()[:16]}"
    if not (policy / "manifest.json").is_file():
        print("fitting tracer-llm's policy: a minute or more", file=sys.stderr)
        start = (str(python), "-I", str(Path(frontier.__file__).with_name("peer_tracer_llm.py")))
        fitted = frontier.measure_peer(frontier.Job("tracer-llm", "banking77", 0.95, 0, splits, policy, start))
        if fitted["fit"]["refused"]:
            raise NotInstalledError("tracer-llm refused to serve banking77 at 0.95")
    return python, policy, traffic


def versions(peers: Path) -> dict[str, str | None]:
    """Of the load generator, the servers and the peers, None where one is missing."""
    portkey = peers / f"portkey-{PORTKEY}" / "node_modules" / "@portkey-ai" / "gateway" / "package.json"
    litellm = str(peers / f"litellm-{LITELLM}" / "bin" / "python")
    both = "from importlib.metadata import version as v; print(v('litellm'), 'on uvicorn', v('uvicorn'))"
    return {
        "wrk": wrk.version(),
        "nginx": _said("nginx", "-v").rpartition("/")[2] or None,
        "node": _said("node", "--version").removeprefix("v") or None,
        "portkey": json.loads(portkey.read_text())["version"] if portkey.is_file() else None,
        "litellm": _said(litellm, "-I", "-c", both) or None,
        "tracer-llm": TRACER_LLM if (peers / f"tracer-llm-{TRACER_LLM}").is_dir() else None,
    }


def _said(*command: str) -> str:
    """What a command says; empty where there is none."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def _install(command: Sequence[str]) -> None:
    try:
        processes.run(command)
    except DemoError as error:
        raise NotInstalledError(str(error)) from None
