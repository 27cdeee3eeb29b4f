"""What every command prints to besides its result."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from policies.errors import PolicyError

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def plain_errors() -> Iterator[None]:
    """What a user can mend is one line on stderr and exit code 1, not a traceback."""
    try:
        yield
    except (PolicyError, ValueError) as error:
        stderr.print(f"error: {error}", style="red")
        raise typer.Exit(1) from error
