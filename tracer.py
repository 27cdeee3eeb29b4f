"""The SDK in one file: what `import tracer` promises, and the command `tracer`. No logic of its own.

Names load on first use, so that serving never pays for learning.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from policies.api import fit, update
    from policies.artifact import Manifest
    from policies.embedder import Embedder
    from policies.fitting import FitResult
    from policies.router import Router, load_router
    from policies.settings import FitConfig

__version__ = "0.1.0"
__all__ = ["Embedder", "FitConfig", "FitResult", "Manifest", "Router", "fit", "load_router", "main", "update"]

_HOMES = {
    "Embedder": "policies.embedder",
    "FitConfig": "policies.settings",
    "FitResult": "policies.fitting",
    "Manifest": "policies.artifact",
    "Router": "policies.router",
    "fit": "policies.api",
    "load_router": "policies.router",
    "update": "policies.api",
}
_COMMANDS = {
    "gateway.cli": ("serve", "check-config"),
    "gateway.keys_cli": ("keys",),
    "gateway.projects_cli": ("projects", "policies", "status", "moves", "promote", "rollback", "pause", "resume"),
    "gateway.demo.cli": ("demo",),
    "policies.cli": ("fit", "update"),
    "policies.inspect_cli": ("evaluate", "report"),
    "policies.scan_cli": ("scan",),
    "policies.traces_cli": ("traces",),
}


def __getattr__(name: str) -> Any:
    """PEP 562: import a promised name where it lives."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tracer' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def main() -> None:
    """The command `tracer`: the group that knows the command asked for, or all of them."""
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    homes = [home for home, names in _COMMANDS.items() if asked in names] or list(_COMMANDS)
    app = typer.Typer(name="tracer", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_describe)
    for home in homes:
        app.add_typer(import_module(home).app)
    app()


def _describe() -> None:
    """Learn an LLM's repeated decisions, prove the copy agrees, and answer them in-process."""


if __name__ == "__main__":
    main()
