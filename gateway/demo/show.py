"""What the demo prints: bars and colours on a terminal, plain lines elsewhere."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.demo import costs
from gateway.demo.days import Day
from gateway.demo.driver import Call, Exchange
from gateway.demo.stack import Learned

_LINES_A_DAY = 4


class Screen:
    """Prints to `console`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str = "", style: str | None = None) -> None:
        """One plain line, never cut and never read as markup."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def heading(self, text: str) -> None:
        """A line that opens a part."""
        self.say()
        self.say(text, style="bold")

    @contextmanager
    def day(self, number: int, calls: int) -> Iterator[Callable[[Call], None]]:
        """A bar for a day's calls; yields what is to be told of each call."""
        if not self._console.is_terminal:
            yield self._lines(number, calls)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(f"day {number}", total=calls)
            seen = handled = 0

            def on_call(call: Call) -> None:
                nonlocal seen, handled
                seen, handled = seen + 1, handled + call.handled
                progress.update(task, advance=1, description=f"day {number}  handled {handled / seen:4.0%}")

            yield on_call

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner while something else runs; nothing where there is no terminal."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(what):
            yield

    def command(self, command: str) -> None:
        """A command as a user would type it."""
        self.say(f"  $ {command}", style="dim")

    def learned(self, learned: Learned) -> None:
        """The gate's verdict in a line."""
        verdict = learned.verdict
        if learned.refused:
            self.say(f"    refused: {verdict['reason']}", style="yellow")
            return
        self.say(
            f"    certified on {verdict['n_traces']:,} traces: coverage {verdict['coverage']:.0%}, agreement "
            f"{verdict['teacher_agreement']:.3f}, at least {verdict['target']:g} proved "
            f"({verdict['seconds']:.1f} s); the running gateway now serves it"
        )

    def table(self, days: Sequence[Day]) -> None:
        """A row a day."""
        title = "Measured on the calls, day by day (synthetic traffic, scripted teacher)"
        table = Table(title=title, box=box.SIMPLE, show_footer=True)
        total = sum(day.calls for day in days)
        handled, agreed = sum(day.handled for day in days), sum(day.agreed for day in days)
        for name, footer in (
            ("day", "all"),
            ("calls", f"{total:,}"),
            ("coverage", _percent(handled / total if total else None)),
            ("agreement", _percent(agreed / handled if handled else None)),
            ("p50\nhandled", ""),
            ("p50\nforwarded", ""),
            ("cost\nwith", f"${sum(day.cost for day in days):.3f}"),
            ("cost\nwithout", f"${sum(day.cost_without for day in days):.3f}"),
        ):
            table.add_column(name, footer=footer, justify="right", no_wrap=True)
        for day in days:
            table.add_row(
                str(day.number),
                f"{day.calls:,}",
                _percent(day.coverage),
                _percent(day.agreement),
                _milliseconds(day.handled_alone),
                _milliseconds(day.forwarded_seconds),
                f"${day.cost:.3f}",
                f"${day.cost_without:.3f}",
            )
        self.say()
        self._console.print(table)
        self._notes(days)

    def _notes(self, days: Sequence[Day]) -> None:
        price = costs.LIST_PRICE
        self.say("agreement: share of handled calls answered with the label the teacher would have given")
        self.say(
            "certificates: judged on day 1, when every call was a trace; later days' traces are calls a policy "
            "deferred, hard ones by selection, so they are learned from but not counted"
        )
        last = next((day for day in reversed(days) if day.handled_alone and day.handled_bare), None)
        if last is not None:
            self.say(
                "p50 handled: one call at a time through the openai client; the same calls over a bare socket take "
                f"{_milliseconds(last.handled_bare)}, the rest is the client's own work"
            )
        self.say("p50 forwarded: a few calls in flight; nearly all of it is the teacher's latency, which is made up")
        self.say(
            f"cost: assumes the {price.name}, ${price.prompt:.2f} and ${price.completion:.2f} for a million prompt and "
            f"answer tokens, {costs.CHARS_PER_TOKEN} characters to a token"
        )

    def exchange(self, title: str, exchange: Exchange, shown_prompt: int = 90) -> None:
        """One call in full; only the system prompt is cut, to `shown_prompt` characters."""
        self.heading(title)
        self.say("  POST /v1/chat/completions")
        self._block(_cut(exchange.request, shown_prompt))
        self.say(f"  HTTP {exchange.status}")
        for name, value in exchange.headers:
            self.say(f"  {name}: {value}", style="cyan" if name.startswith("x-tracer-") else None)
        self._block(exchange.answer)

    def _block(self, text: str) -> None:
        self.say(textwrap.indent(text, "    "))

    def _lines(self, number: int, calls: int) -> Callable[[Call], None]:
        seen = handled = 0

        def on_call(call: Call) -> None:
            nonlocal seen, handled
            seen, handled = seen + 1, handled + call.handled
            if seen * _LINES_A_DAY // calls > (seen - 1) * _LINES_A_DAY // calls:
                self.say(f"  {seen:,} of {calls:,} calls, {handled / seen:.0%} handled")

        self.heading(f"day {number}")
        return on_call


def _cut(request: str, shown: int) -> str:
    start = request.find('"content":"')
    end = request.find('"}', start)
    if start < 0 or end - start <= shown:
        return request
    return request[: start + shown] + " [...]" + request[end:]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g} ms"
