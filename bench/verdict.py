"""What `peers.py` measured as tables: one row a server, and the bars that ours has to clear.

A row holds `rounds`, each with `round`, its number, and `loads`: by number of connections, what `wrk.read` found. The
figure of a row is the median over its rounds. Rows are compared round by round, and only within one run, so that both
saw the same machine; the figure of a comparison is the median of its rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from bench.frontier import head, short

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure of a row at so many connections, alone or against the same figure of another row."""

    title: str
    row: str
    connections: int
    figure: str
    limit: float
    at_most: bool = True
    against: str | None = None
    how: Literal["times", "more"] = "times"
    unit: str = ""
    scale: float = 1.0  # from the figure's own unit
    cores: int = 1  # fewer do not decide it

    def asked(self) -> str:
        """The limit in words."""
        times = "x" if self.against and self.how == "times" else ""
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}{times}{self.unit}"


BARS = (
    *(
        bar
        for row, what in (("handled", "text seen before"), ("new", "new text"))
        for bar in (
            Bar(f"handled, {what}, 1 connection: p50", row, 1, "p50_us", 0.2, unit=" ms", scale=1e-3),
            Bar(f"handled, {what}, 1: p50 against the empty app", row, 1, "p50_us", 2.0, against="empty"),
            Bar(f"handled, {what}, 32: calls/s against the empty app", row, 32, "calls_a_second", 0.5, False, "empty"),
            Bar(f"handled, {what}, 32: p99 against the empty app", row, 32, "p99_us", 1.5, against="empty"),
        )
    ),
    Bar(
        "forwarded, 1: p50 added to the upstream's",
        "forwarded",
        1,
        "p50_us",
        0.45,
        against="upstream",
        how="more",
        unit=" ms",
        scale=1e-3,
    ),
    Bar("forwarded, 32: calls/s against the bare relay", "forwarded", 32, "calls_a_second", 0.6, False, "relay"),
    Bar("forwarded, 32: p99 against the bare relay", "forwarded", 32, "p99_us", 1.5, against="relay"),
    Bar("forwarded, 32: calls/s against LiteLLM proxy", "forwarded", 32, "calls_a_second", 30, False, "litellm"),
    Bar("forwarded, 32: calls/s against Portkey", "forwarded", 32, "calls_a_second", 3, False, "portkey"),
    Bar("handled: memory (RSS)", "new", 0, "rss", 150, unit=" MB", scale=1e-6),
    Bar(
        "handled, new text, 32, two workers: calls/s against one",
        "new-2",
        32,
        "calls_a_second",
        1.6,
        False,
        "new",
        cores=3,  # one is wrk's
    ),
    Bar(
        "forwarded, 32, two workers: calls/s against one",
        "forwarded-2",
        32,
        "calls_a_second",
        1.6,
        False,
        "forwarded",
        cores=4,  # one is wrk's, one the upstream's
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bar came to: `value` is the median of rounds between `low` and `high`. `why`: what leaves it undecided."""

    bar: Bar
    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""

    @property
    def missed(self) -> bool:
        """The bar was measured, could be decided, and was not cleared."""
        if self.value is None or self.why:
            return False
        return self.value > self.bar.limit if self.bar.at_most else self.value < self.bar.limit


def judge(bar: Bar, rows: Mapping[str, Row], cores: int) -> Verdict:
    """The bar on what was measured on a machine with so many cores."""
    missing = [name for name in (bar.row, bar.against) if name is not None and not _figures(rows, name, bar)]
    if missing:
        return Verdict(bar, why=f"not measured: {', '.join(missing)}")
    own = _figures(rows, bar.row, bar)
    found = list(own.values())
    if bar.against is not None:
        if rows[bar.row]["run"] != rows[bar.against]["run"]:
            return Verdict(bar, why="not measured in one run")
        other = _figures(rows, bar.against, bar)
        both = sorted(own.keys() & other.keys())
        if bar.how == "times":
            found = [own[number] / other[number] for number in both if other[number]]
        else:
            found = [own[number] - other[number] for number in both]
        if not found:
            return Verdict(bar, why="not measured in one round")
    scale = 1.0 if bar.against and bar.how == "times" else bar.scale
    value, low, high = (each(found) * scale for each in (median, min, max))
    return Verdict(bar, value, low, high, f"not decided on {cores} cores" if cores < bar.cores else "")


def _figures(rows: Mapping[str, Row], name: str, bar: Bar) -> dict[int, float]:
    """The bar's figure in each round of a row, by the round's number."""
    row = rows.get(name, {"rounds": []})
    if bar.connections == 0:
        return {0: row["memory"][bar.figure]} if "memory" in row else {}
    loads = {each["round"]: each["loads"].get(str(bar.connections)) for each in row["rounds"]}
    return {number: load[bar.figure] for number, load in loads.items() if load and load["requests"]}


def bars_table(verdicts: list[Verdict]) -> str:
    """Markdown, one line a bar."""
    lines = [head(("bar", "limit", "measured", "rounds from - to", "verdict"))]
    for each in verdicts:
        bar, cells = each.bar, ["", ""]
        if each.value is not None:
            sign = "x" if bar.against and bar.how == "times" else bar.unit
            cells = [f"{each.value:.3g}{sign}", f"{each.low:.3g} - {each.high:.3g}"]
        word = each.why or ("**missed**" if each.missed else "met")
        lines.append(f"| {' | '.join([bar.title, bar.asked(), *cells, word])} |")
    return "\n".join(lines)


def rows_table(rows: Mapping[str, Row], titles: Mapping[str, str], connections: list[int]) -> str:
    """Markdown, one line a row, in the order of `titles`."""
    names = ["what answers"]
    for each in connections:
        names += [f"{each} connection{'s' * (each > 1)}: p50 / p99, ms", "calls/s"]
    lines = [head((*names, "CPU a call, us", "RSS / PSS, MB"))]
    for name, title in titles.items():
        if name in rows:
            lines.append(_line(title, rows[name], connections))
    return "\n".join(lines)


def _line(title: str, row: Row, connections: list[int]) -> str:
    cells = [title + (" (!)" if row["faults"] else "")]
    for each in connections:
        loads = [found["loads"][str(each)] for found in row["rounds"] if str(each) in found["loads"]]
        if not loads:
            cells += ["", ""]
            continue
        if not all(load["requests"] for load in loads):
            cells += ["no answer in time", "0"]
            continue
        p50, p99, rate = (median(load[figure] for load in loads) for figure in ("p50_us", "p99_us", "calls_a_second"))
        cells += [f"{_ms(p50)} / {_ms(p99)}", f"{rate:,.0f}"]
    costs = [load["cpu_us"] for found in row["rounds"] for load in found["loads"].values() if load["connections"] == 32]
    cells.append(f"{median(costs):,.0f}" if costs else "")
    memory = row.get("memory")
    cells.append(f"{memory['rss'] / 1e6:,.0f} / {memory['pss'] / 1e6:,.0f}" if memory else "")
    return f"| {' | '.join(cells)} |"


def _ms(microseconds: float) -> str:
    value = microseconds / 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def render(result: dict[str, Any], titles: Mapping[str, str]) -> str:
    """Both tables, what went wrong in which row, what was left out, and where and with what each run was made."""
    rows, runs = result["rows"], result["runs"]
    connections = sorted({int(each) for row in rows.values() for one in row["rounds"] for each in one["loads"]})
    parts = [rows_table(rows, titles, connections)]
    faults = [
        f"- (!) {titles[name]}: {'; '.join(f'{count:,} {what}' for what, count in row['faults'].items())}"
        for name, row in rows.items()
        if row["faults"]
    ]
    absent = [f"- not measured: {titles.get(name, name)}: {why}" for name, why in result["absent"].items()]
    if faults or absent:
        parts.append("\n".join([*faults, *absent]))
    parts.append(bars_table([judge(bar, rows, runs[-1]["stamp"]["cores"]) for bar in BARS]))
    for run in runs:
        own = [titles[name] for name in titles if name in rows and rows[name]["run"] == run["id"]]
        if own:
            parts.append(_where(run, own if len(runs) > 1 else []))
    return "\n\n".join(parts)


def _where(run: dict[str, Any], rows: list[str]) -> str:
    stamp, options = run["stamp"], run["options"]
    packages = {name: stamp["packages"].get(name) for name in ("uvicorn", "starlette", "aiohttp", "onnxruntime")}
    versions = ", ".join(f"{name} {version}" for name, version in (packages | run["versions"]).items() if version)
    text = f"{stamp['cpu']}, {stamp['cores']} cores, Python {stamp['python']}, commit {short(stamp['commit'])}, "
    text += f"{stamp['date'][:10]}: {options['rounds']} rounds of {options['seconds']} s ({options['slow_rounds']} of "
    text += f"{options['slow_seconds']} s for LiteLLM, Portkey and tracer-llm); {options['cores']}. {versions}."
    return text + (f" Rows of this run: {'; '.join(rows)}." if rows else "")
