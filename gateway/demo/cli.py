"""`tracer demo`."""

import signal
import tempfile
import time
from http.client import HTTPException
from pathlib import Path
from typing import Annotated

import openai
import typer
from rich.console import Console

from gateway.demo.errors import DemoError
from gateway.demo.play import Options, play
from gateway.demo.show import Screen

app = typer.Typer(no_args_is_help=True)

_INTERRUPTED = 130


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Fixes the messages and the teacher.")] = 7,
    calls_per_day: Annotated[int, typer.Option(min=20, max=4_000, help="Calls a day, for four days.")] = 1_600,
    target: Annotated[float, typer.Option(min=0.5, max=0.99, help="Agreement to prove on handled calls.")] = 0.95,
    keep: Annotated[
        Path | None, typer.Option(help="Keep configuration, traces, policy and logs in this folder.")
    ] = None,
) -> None:
    """Four synthetic days of traffic through a real gateway, in about a minute: watch coverage rise.

    Exits with 1 where a call failed, agreement fell below the target, or nothing was certified.
    """
    screen = Screen(Console())
    # `kill` is to end the children too: it takes the way of Ctrl-C, which a running event loop knows how to go.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="tracer-demo-") as temporary:
            found = play(Options(seed, calls_per_day, target), _folder(keep) or Path(temporary), screen)
    except KeyboardInterrupt:
        screen.say("interrupted; every process of the demo has ended", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except (DemoError, openai.APIError, HTTPException, OSError) as error:
        screen.say(f"the demo failed: {error}", style="red")
        raise typer.Exit(1) from error
    _say_what_next(screen, keep)
    screen.say()
    for fault in found:
        screen.say(f"DID NOT HOLD: {fault}", style="red")
    screen.say(f"{'failed' if found else 'done'} in {time.monotonic() - started:.0f} s")
    if found:
        raise typer.Exit(1)


def _folder(keep: Path | None) -> Path | None:
    if keep is None:
        return None
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise DemoError(f"{keep} is not empty: --keep wants a new folder")
    return keep


def _say_what_next(screen: Screen, keep: Path | None) -> None:
    screen.heading("What to do next")
    steps = [
        ("have a log of labelled calls?", "tracer fit traces.jsonl --target 0.95 --out .tracer"),
        ("", "tracer evaluate traffic.jsonl --policy .tracer"),
        ("in front of your provider:", "tracer serve --config config.yaml   (start from config.example.yaml)"),
        ("", 'OpenAI(base_url="http://127.0.0.1:8000/v1")'),
    ]
    if keep is not None:
        steps += [
            ("this demo's policy:", f"tracer report --policy {keep / 'policy'}"),
            ("", f"tracer serve {keep / 'policy'}"),
        ]
    else:
        steps.append(("look inside:", "tracer demo --keep demo"))
    for title, step in steps:
        screen.say(f"  {title:31}{step}")
