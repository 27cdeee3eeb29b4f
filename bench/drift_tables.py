"""What `drift.py` saw, as figures, a timeline and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.frontier import head
from bench.frontier import short as short_commit

WINDOW = 500
"""Calls over which coverage and agreement are averaged for the plot."""

_STEP = 50
Calls = Sequence[Mapping[str, Any]]
Moves = Sequence[Mapping[str, Any]]
_NAMES = (
    *("what changed", "live after: calls (comparisons)", "acted on after: calls / audits / s", "what was done"),
    *("wrong answers until then", "until recovery", "had nothing been done", "back by", "coverage before / after"),
    "agreement on handled calls before / after",
)


def figures(calls: Calls, moves: Moves, marks: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> dict[str, Any]:
    """All that is told of one scenario. `known`: when it was promoted and changed, and what would have been."""
    event, promoted = known["event"], known["promoted"]
    later = [move for move in moves if move["call"] > event or move["seconds_since"] > 0]
    first = later[0] if later else None
    acted = first["call"] if first is not None else known["end"]
    back = next((mark["call"] for mark in marks if mark["kind"] == "recovered"), None)
    until = known["end"] if back is None else back
    idle = known["idle_wrong"]
    distinct = len({call["text"].lower() for call in calls})
    return {
        "calls": len(calls),
        "distinct_texts": distinct,
        "audits": known["audits"],
        "promoted": promoted,
        "event": event,
        "acted": None if first is None else acted - event,
        "acted_audits": None if first is None else first["audits_since"],
        "acted_seconds": None if first is None else first["seconds_since"],
        "recovered": None if back is None else back - event,
        "wrong_until_acted": wrong(calls[event:acted]),
        "idle_until_acted": sum(idle[: acted - event]),
        "wrong_until_recovered": wrong(calls[event:until]),
        "idle_until_recovered": sum(idle[: until - event]),
        "before": share(calls[promoted:event]),
        "between": share(calls[acted:until]),
        "after": share(calls[event:] if back is None and not later else calls[until:]),
        "moves": list(moves),
        "marks": list(marks),
        "curve": curve(calls),
    }


def wrong(calls: Calls) -> int:
    """Answers that the application got from the policy and that were not the teacher's."""
    return sum(call["handled"] and call["wrong"] for call in calls)


def share(calls: Calls) -> dict[str, Any]:
    """Coverage, and agreement on what was handled."""
    handled = [call for call in calls if call["handled"]]
    agreed = sum(not call["wrong"] for call in handled)
    return {
        "calls": len(calls),
        "handled": len(handled),
        "coverage": round(len(handled) / len(calls), 4) if calls else None,
        "agreement": round(agreed / len(handled), 4) if handled else None,
    }


def curve(calls: Calls) -> list[tuple[int, float, float]]:
    """(call, coverage, agreement of all answers) over the last `WINDOW` calls."""
    points = []
    for end in range(_STEP, len(calls) + 1, _STEP):
        part = calls[max(0, end - WINDOW) : end]
        points.append((end, sum(c["handled"] for c in part) / len(part), sum(not c["wrong"] for c in part) / len(part)))
    return points


def timeline(found: Mapping[str, Any]) -> str:
    """One line an event."""
    rows = [(mark["seconds"], mark["call"], mark["audits"], _told_mark(mark)) for mark in found["marks"]]
    rows += [(max(0.0, move["seconds"]), move["call"], move["audits"], _told_move(move)) for move in found["moves"]]
    lines = [f"{'s':>7} {'calls':>7} {'audits':>7}  what"]
    lines += [f"{seconds:7.1f} {call:7,} {audits:7,}  {told}" for seconds, call, audits, told in sorted(rows)]
    if found["note"]:
        lines.append(f"({found['note']})")
    return "\n".join(lines)


def _told_mark(mark: Mapping[str, Any]) -> str:
    if mark["kind"] == "event":
        return f"=== {mark['told']}"
    told = {"noticed": "--- noticed", "recovered": "--- back", "not recovered": "--- not back"}.get(mark["kind"])
    if told is not None:
        return told
    if mark["kind"] == "command":
        return f"$ {mark['told']}"
    fit = mark["fit"]
    verdict = "refused" if fit["refused"] else f"coverage {fit['coverage']:.3f} certified"
    return f"$ {mark['told']}: {fit['n_traces']:,} traces, {verdict}"


def _told_move(move: Mapping[str, Any]) -> str:
    evidence = ", ".join(f"{key} {value}" for key, value in move["evidence"].items() if value not in (None, ""))
    change = move["new"] if move["old"] == move["new"] else f"{move['old']} -> {move['new']}"
    return f"{(move['version'] or '')[-8:]} {change}: {move['cause']}" + (f" ({evidence})" if evidence else "")


def table(result: Mapping[str, Any]) -> str:
    """Markdown, a row a scenario."""
    lines = [head(_NAMES)]
    lines += [_row(found) for found in result["scenarios"].values()]
    where, audit = result["stamp"], result["audit"]
    share = "0.02" if audit.get("first_hours") == 0 else "0.1, as in the first hours,"
    n = sum(found["calls"] for found in result["scenarios"].values())
    texts = max(found["distinct_texts"] for found in result["scenarios"].values())
    lines.append(
        f"\n{n:,} calls at {result['calls_a_second']:g} a second, up to {texts:,} different texts a scenario; {share} "
        f"of handled calls audited, more where suspicion grows; the day's cap of 2,000 audits raised to "
        f"{audit['daily_calls']:,}, since a day's calls pass in half a minute. "
        f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, commit {short_commit(where['commit'])}, "
        f"{where['date'][:10]}, {result['seconds']:.0f} s."
    )
    return "\n".join(lines)


def _row(found: Mapping[str, Any]) -> str:
    shown = next((move for move in found["moves"] if move["new"] == "live"), None)
    comparisons = f" ({shown['evidence'].get('comparisons'):,})" if shown is not None else ""
    acted, back = found["acted"], found["recovered"]
    before, after = found["before"], found["after"]
    cells = (
        found["title"],
        f"{found['promoted']:,}{comparisons}",
        "-" if acted is None else f"{acted:,} / {found['acted_audits']:,} / {found['acted_seconds']:g}",
        _done(found),
        "-" if acted is None else f"{found['wrong_until_acted']:,}",
        "-" if back is None else f"{found['wrong_until_recovered']:,}",
        "-" if back is None else f"{found['idle_until_recovered']:,}",
        "-" if back is None else f"{_way(found)}, {back:,} calls",
        f"{_number(before['coverage'])} / {_number(after['coverage'])}",
        f"{_number(before['agreement'])} / {_number(after['agreement'])}",
    )
    return f"| {' | '.join(cells)} |"


def _done(found: Mapping[str, Any]) -> str:
    later = [move for move in found["moves"] if move["call"] > found["event"]]
    until = found["recovered"]
    later = [move for move in later if until is None or move["call"] <= found["event"] + until]
    withheld = sum(move["cause"].startswith("label withheld") for move in later)
    done = [f"{withheld} labels withheld"] if withheld else []
    done += [f"{move['new']}: {move['cause']}" for move in later if move["new"] in ("shadow", "demoted") and _own(move)]
    return "; ".join(done) or "nothing"


def _own(move: Mapping[str, Any]) -> bool:
    return bool(move["old"] == "live")


def _way(found: Mapping[str, Any]) -> str:
    return "a refit" if any(mark["kind"] == "refit" for mark in found["marks"]) else "proof in shadow"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def short(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is written to the file: a curve's points as lines of call, coverage and agreement, every other one."""
    scenarios = {
        name: dict(found)
        | {"curve": [f"{n} {coverage:.3f} {agreed:.4f}" for n, coverage, agreed in found["curve"][::2]]}
        for name, found in result["scenarios"].items()
    }
    return dict(result) | {"scenarios": scenarios}
