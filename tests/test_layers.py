"""Import directions: who may know whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT

# The serving half of `policies`: what the gateway may know of it.
SERVING = {"types", "errors", "policy", "artifact", "store", "record", "features", "answers", "input_form"}
SERVING |= {
    "prompts",
    "prompt_spans",
    "monitor",
    "states",
    "lifecycle",
    "evidence",
    "audit_rate",
    "projects",
    "labels",
    "rules",
    "verdicts",
}
LEAVES = ("policies/types.py", "policies/errors.py", "gateway/errors.py")
LAZY = {"gateway/providers.py"}  # litellm; `tracer.py` loads by name
TRAINING = {"sklearn", "scipy", "skl2onnx", "onnx", "litellm"}
# Megabytes each, needed to migrate an old store, beside litellm, by PostgreSQL, and by commands that draw progress.
SELDOM = {"alembic", "httpx", "psycopg", "rich"}


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    """Dotted names of the modules a file imports, names imported from packages included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _internal(path: Path) -> set[str]:
    modules = set()
    for name in _imports(path):
        place = ROOT.joinpath(*name.split("."))
        if name.split(".")[0] in {"gateway", "policies"} and (place.with_suffix(".py").exists() or place.is_dir()):
            modules.add(name)
    return modules


@pytest.mark.parametrize("path", _sources("policies"), ids=str)
def test_policies_never_import_the_gateway(path: Path) -> None:
    """Learning works without serving."""
    assert not {name for name in _imports(path) if name.split(".")[0] in {"gateway", "tracer"}}


@pytest.mark.parametrize("path", _sources("gateway"), ids=str)
def test_the_gateway_imports_only_the_serving_half(path: Path) -> None:
    """Of `policies` it knows what decides and what records, never what learns. The demo drives both."""
    if "demo" in path.parts:
        return
    used = {name.split(".")[1] for name in _internal(path) if name.startswith("policies.")}
    assert used <= SERVING


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nothing_internal(leaf: str) -> None:
    """Types and errors lie at the bottom."""
    assert _internal(ROOT / leaf) == set()


def test_there_are_no_import_cycles() -> None:
    """Every module can be read before those that use it."""
    graph: dict[str, set[str]] = {}
    for path in _sources("gateway") + _sources("policies"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = _internal(path) - {name, name.rpartition(".")[0]}
    done: set[str] = set()
    while ready := {name for name, used in graph.items() if name not in done and used & graph.keys() <= done}:
        done |= ready
    assert not graph.keys() - done, "these import each other, directly or not"


@pytest.mark.parametrize("path", _sources("gateway") + _sources("policies"), ids=str)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    """Optional extras and litellm go through importlib, in the one place that says why."""
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    hidden = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not hidden, f"line {hidden[0].lineno}"


def test_serving_loads_nothing_of_learning() -> None:
    """Importing the gateway's app and its command brings no scikit-learn, no litellm, and nothing seldom needed."""
    code = "import gateway.app, gateway.cli, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not (TRAINING | SELDOM) & set(done.stdout.split())
