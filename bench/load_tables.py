"""What `load.py` measured as tables, and the bars that it missed."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.caller import HANDLED
from bench.frontier import head

ALONE, BESIDE, NICED = "alone", "beside a refit", "beside a refit under nice"
MOST_TIMES = 2.0
# Of the cascade, and of the long run. MB are 10^6 bytes.
MOST_MS = 15.0
STEP, MOST_MB, MOST_GROWTH_MB = 100_000, 150.0, 3.0

Result = dict[str, Any]


def mixed_missed(found: Result) -> list[str]:
    """What of its bar `mixed` has missed."""
    missed = [
        f"{row['errors']} errors of {kind} calls {condition} (the first: {row['first_error']})"
        for condition, rows in found["rows"].items()
        for kind, row in rows.items()
        if row["errors"]
    ]
    alone, beside = (found["rows"][condition][HANDLED].get("p99_ms") for condition in (ALONE, BESIDE))
    if alone is None or beside is None:
        return [*missed, "no handled call was answered"]
    if beside > MOST_TIMES * alone:
        missed.append(f"handled p99 beside a refit is {beside / alone:.1f}x that of alone, more than {MOST_TIMES:g}x")
    return missed


def transformer_missed(found: Result) -> list[str]:
    """What of its bar `transformer` has missed."""
    row = found["row"]
    missed = [f"{row['errors']} errors (the first: {row['first_error']})"] if row["errors"] else []
    if "p99_ms" not in row:
        return [*missed, "no call was handled"]
    if row["p99_ms"] > MOST_MS:
        missed.append(f"handled p99 is {row['p99_ms']:.1f} ms, more than {MOST_MS:g} ms")
    return missed


def memory_missed(found: Result) -> list[str]:
    """What of its bar `memory` has missed."""
    points = {int(calls): memory["rss"] for calls, memory in found["memory_mb"].items()}
    missed = [f"{found['errors']} errors (the first: {found['first_error']})"] if found["errors"] else []
    if max(points.values()) > MOST_MB:
        missed.append(f"RSS is up to {max(points.values()):.0f} MB, more than {MOST_MB:g} MB")
    grown = points[max(points)] - points[STEP]
    if grown > MOST_GROWTH_MB:
        missed.append(f"RSS grows by {grown:.1f} MB from {STEP:,} calls on, more than {MOST_GROWTH_MB:g} MB")
    return missed


def mixed_table(found: Result) -> str:
    """Markdown, one line a condition and kind."""
    lines = [head(("condition", "calls", "number", "p50, ms", "p99, ms", "p99 by round", "own p99, ms", "errors"))]
    for condition, rows in found["rows"].items():
        rounds = found["rounds"][condition]
        lines += [_mixed_line(condition, kind, row, [each[kind] for each in rounds]) for kind, row in rows.items()]
    fits = ", ".join(f"{count} {condition.removeprefix('beside ')}" for condition, count in found["refits"].items())
    busy = "; ".join(
        f"{condition}: " + ", ".join(f"{name} {share:.2f}" for name, share in each.items())
        for condition, each in found["busy"].items()
    )
    return "\n".join([*lines, "", f"Fits that came to their end: {fits}. Cores busy, {busy}."])


def _mixed_line(condition: str, kind: str, row: dict[str, Any], rounds: list[dict[str, Any]]) -> str:
    each = sorted(one["p99_ms"] for one in rounds if "p99_ms" in one)
    spread = f"{each[0]:.1f} - {median(each):.1f} - {each[-1]:.1f}" if each else ""
    cells = [_ms(row, "p50_ms"), _ms(row, "p99_ms"), spread, _ms(row, "own_p99_ms"), str(row["errors"])]
    return f"| {' | '.join([condition, kind, format(row['calls'], ','), *cells])} |"


def transformer_table(found: Result) -> str:
    """Markdown, one line."""
    row = found["row"]
    names = (
        "handled calls",
        "needing the transformer",
        "p50, ms",
        "p99, ms",
        "own p99, ms",
        "deferred as busy",
        "errors",
    )
    cells = [f"{row['calls']:,}", f"{found['needing']:.0%}", _ms(row, "p50_ms"), _ms(row, "p99_ms")]
    cells += [_ms(row, "own_p99_ms"), str(row["put_off"]), str(row["errors"])]
    return f"{head(names)}\n| {' | '.join(cells)} |"


def memory_table(found: Result) -> str:
    """Markdown: one line a point, but of many only the first, the last and ten between."""
    points = sorted((int(calls), memory) for calls, memory in found["memory_mb"].items())
    kept = [p for p in points if p[0] <= STEP or p[0] == points[-1][0] or p[0] % max(STEP, points[-1][0] // 10) == 0]
    lines = [head(("calls", "RSS, MB", "of it not mapped from files, MB"))]
    lines += [f"| {calls:,} | {memory['rss']:.1f} | {memory['own']:.1f} |" for calls, memory in kept]
    rate = points[-1][0] / found["seconds"]
    return "\n".join([*lines, "", f"{rate:,.0f} calls a second, {found['errors']} errors."])


def _ms(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}" if name in row else ""


def verdict(missed: Sequence[str]) -> str:
    """The bar in a line."""
    return "Met." if not missed else f"**Missed**: {'; '.join(missed)}."
