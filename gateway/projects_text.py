"""What projects' summaries (`policies.projects`) look like to people: short lines, aligned, within 100 columns."""

from collections.abc import Iterable, Sequence
from math import exp
from textwrap import wrap
from typing import Any

from policies.verdicts import PATIENCE

Summary = dict[str, Any]

_NOTHING = "-"
_MOST_LINES = 5  # of withheld labels, and of the agreements tried in shadow
_WIDTH = 100
_INDENT = "    "
_LEAST_SHARE = 0.01
_KEY_WIDTH = 11


def listing(summaries: Iterable[Summary]) -> list[str]:
    """A line a project."""
    rows = [("PROJECT", "STATE", "LIVE", "SHADOW", "AGREEMENT (AUDITS)")]
    for found in summaries:
        policy = _policy(found, found["live"])
        agreement = _NOTHING if policy is None else _bound(policy)
        rows.append(
            (found["project"], found["state"], found["live"] or _NOTHING, found["shadow"] or _NOTHING, agreement)
        )
    return _columns(rows)


def policies(found: Summary) -> list[str]:
    """A line a policy, the newest first, and below it why it stands so."""
    rows = [("POLICY", "STATE", "SINCE", "HELD TO")]
    rows += [(p["version"], p["state"], moment(p["since"]), f"{p['held_to']:g}") for p in found["policies"]]
    header, *lines = _columns(rows)
    shown = [header]
    for policy, line in zip(found["policies"], lines, strict=True):
        why = f"{policy['cause']}: {policy['reason']}" if policy["reason"] else policy["cause"]
        shown += [line, *_below(why)]
    return shown


def moves(found: Iterable[Summary]) -> list[str]:
    """A line a move, the latest last, and below it the policy and the evidence."""
    lines = []
    for move in found:
        change = move["new"] if move["old"] in (None, move["new"]) else f"{move['old']} -> {move['new']}"
        lines.append(f"{moment(move['ts'])}  {change}: {move['cause']} ({move['by']})")
        evidence = [f"{key} {_value(value)}" for key, value in move["evidence"].items() if value is not None]
        lines += _below(", ".join([*filter(None, [move["version"]]), *evidence]))
    return lines


def headline(found: Summary) -> str:
    """Where a project stands, since when and why."""
    policy = concerned(found)
    stands = f"{found['project']}: {found['state']}"
    if policy is None:
        return stands
    if found["paused"]:
        return f"{stands}; {policy['version']} is {policy['state']}"
    return f"{stands} since {moment(policy['since'])} ({policy['cause']})"


def status(found: Summary, today: str) -> list[str]:
    """All that is known of where a project stands. `today` is the date, as `audits_today` names its day."""
    policy, shadow = concerned(found), _policy(found, found["shadow"])
    rows: list[tuple[str, str]] = []
    if policy is not None:
        rows += [("policy", policy["version"]), *_target(policy)]
    if policy is not None and policy["version"] == found["live"]:
        rows += [*_live(policy), ("audits", _audits(found, today)), *_withheld(policy)]
    if shadow is not None:
        rows += _shadow(shadow, found["promotion"])
    rows.append(("next", next_step(found)))
    room = _WIDTH - _KEY_WIDTH - 2
    lines = [(key if part == 0 else "", text) for key, long in rows for part, text in enumerate(wrap(long, room))]
    return [headline(found), *(f"  {key:{_KEY_WIDTH}}{text}" for key, text in lines)]


def concerned(found: Summary) -> Summary | None:
    """The policy that a project's state is about; None where there is none yet."""
    named = _policy(found, found["live"] or found["shadow"])
    if named is not None:
        return named
    own = [policy for policy in found["policies"] if policy["state"] == found["state"]]
    return next(iter(own or found["policies"]), None)


def next_step(found: Summary) -> str:
    """What a user can do now, in one line."""
    name, back = found["project"], found["rollback_to"]
    rollback = f"tracer rollback {name} (to {back})" if back else ""
    if found["paused"]:
        return f"tracer resume {name}"
    if found["state"] == "live":
        return "; ".join(filter(None, [rollback, f"tracer pause {name}"]))
    if found["state"] in ("shadow", "candidate"):
        wait = "" if found["promotion"] == "manual" else "wait for the proof, or "
        return f"{wait}tracer promote {name}"
    if found["state"] == "observing" and not found["policies"]:
        return f"gather traces; then tracer traces export --project {name} and tracer fit"
    again = f"tracer promote {name} VERSION has the demoted one answer again" if found["state"] == "demoted" else ""
    return "; ".join(filter(None, ["tracer update with newer traces", rollback, again]))


def moment(text: str) -> str:
    """An ISO 8601 time to the second."""
    return f"{text[:19]}Z"


def _policy(found: Summary, version: str | None) -> Summary | None:
    return next((policy for policy in found["policies"] if policy["version"] == version), None)


def _target(policy: Summary) -> list[tuple[str, str]]:
    held = "" if policy["held_to"] == policy["target"] else f", held to {policy['held_to']:g}"
    refused = [("refused", policy["reason"])] if policy["reason"] else []
    return [("target", f"{policy['target']:g}{held}"), *refused]


def _bound(policy: Summary) -> str:
    live = policy.get("live", {})
    return f">= {live['agreement_lower']:.3f} ({live['audits']:,})" if live.get("audits") else "no audits yet"


def _live(policy: Summary) -> list[tuple[str, str]]:
    live = policy.get("live")
    if live is None:
        return []
    agreement = "no audits yet"
    if live["audits"]:
        agreement = (
            f">= {live['agreement_lower']:.3f} ({100 * live['confidence']:g} % sure at all times), "
            f"estimate {live['agreement']:.3f}, from {live['audits']:,} audits, {live['disagreements']:,} disagreements"
        )
    against, change = (_part(live, *keys) for keys in (("evidence_against", "demoted_at"), ("detector", "detector_at")))
    rows = [
        ("agreement", agreement),
        ("evidence", f"against the promise {against}, for a change {change} of what would demote"),
        ("calls", f"{live['calls']:,} decided, {live['outside_the_guard']:,} of them outside the guard"),
    ]
    if live["strange_prompts"] or live["strange_teachers"]:
        prompts, teachers = (_percent(live[key]) for key in ("strange_prompts", "strange_teachers"))
        rows.append(("strange", f"prompts {prompts} of calls, teachers {teachers} of answers"))
    return rows


def _audits(found: Summary, today: str) -> str:
    if not found["watched"]:
        return "none: there is no upstream to compare with"
    if not found["audits_wanted"]:
        return "off (audit.rate: 0): nothing that is answered is measured"
    spent = found["audits_today"]
    calls, usd = (spent["calls"], spent["usd"]) if spent["day"] == today else (0, 0.0)
    money = "" if spent["daily_usd"] is None else f", ${usd:,.2f} of ${spent['daily_usd']:,.2f}"
    return f"{_percent(found['audit_rate'])} of answered calls; {calls:,} of {spent['daily_calls']:,} today{money}"


def _withheld(policy: Summary) -> list[tuple[str, str]]:
    held = policy.get("withheld", {})
    rows = [
        (
            "withheld",
            f"{label} ({one['cause']}, since {moment(one['since'])}): {one['comparisons']:,} comparisons, evidence "
            f"{max(0.0, one['evidence_for']):.1f} of {one['returned_at']:.1f} needed",
        )
        for label, one in list(held.items())[:_MOST_LINES]
    ]
    return [*rows, ("", f"and {len(held) - _MOST_LINES} more labels")] if len(held) > _MOST_LINES else rows


def _shadow(policy: Summary, promotion: str) -> list[tuple[str, str]]:
    trials = policy.get("shadow", [])[:_MOST_LINES]
    rows = [("shadow", policy["version"])] if promotion != "manual" else [("shadow", f"{policy['version']} (manual)")]
    for trial in trials:
        agreement = "" if trial["agreement"] is None else f", agreement {trial['agreement']:.3f}"
        evidence = f"evidence {max(0.0, trial['evidence_for']):.1f} of {trial['promoted_at']:.1f} needed"
        proved = " (proved)" if trial["evidence_for"] >= trial["promoted_at"] else ""
        rows.append(
            ("", f"at {trial['held_to']:g}: {trial['comparisons']:,} comparisons{agreement}, {evidence}{proved}")
        )
    if len(trials) > 1 and promotion != "manual":
        what = f"goes live at {trials[0]['held_to']:g} when that is proved; at a stricter one that is, once "
        rows.append(("", f"{what}{trials[0]['held_to']:g} is refuted or has {PATIENCE:,} comparisons"))
    return rows


def _part(figures: Summary, value: str, limit: str) -> str:
    """The share that one is of the other, both given as logarithms: those of a detector are never far apart."""
    share = exp(min(0.0, figures[value] - figures[limit]))
    return "under 1 %" if share < _LEAST_SHARE else f"{100 * share:.0f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their columns aligned."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    padded = ([text.ljust(width) for text, width in zip(row, widths, strict=False)] + [row[-1]] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _below(text: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_long_words=False)
