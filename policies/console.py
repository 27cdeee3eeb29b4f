"""What the commands share: where they print, how they fail, and the options that several of them have."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from policies.errors import PolicyError

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
# Labels and paths are data: nothing of a result is read as markup.
stdout = Console(highlight=False, markup=False, soft_wrap=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Count bad lines and go on instead of stopping at the first.")
]
EmbeddingsFile = Annotated[Path | None, typer.Option(help="A .npy matrix, one row a trace.")]
PolicyFolder = Annotated[Path, typer.Option(help="The policy folder.")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user can mend is one line on stderr and exit code 1, not a traceback."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has gone: the runtime ends quietly
    except (PolicyError, ValueError, ConnectionError) as error:
        stderr.print(f"error: {error}", style="red")
        raise typer.Exit(1) from error


@contextmanager
def reading_bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr while a file is read; nothing where stderr is no terminal. Takes the share read so far, 0..1."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task(f"reading {what}", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
