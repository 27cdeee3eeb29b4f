"""Trace files: JSONL in and out, and the small operations on lists of traces.

One JSON object a line: `input` and `teacher`, optionally `kind` (text, tool or other; any other word means text),
`arguments` (beside kind tool), `id`, `ground_truth`, `mini`, `ts`, `weight`. Every complaint names file, line and
cause. Lines are read as bytes, one at a time, so one bad line never spoils its neighbours.
"""

import contextlib
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson

from policies.errors import TraceError
from policies.lines import MAX_LINE_BYTES, read_lines
from policies.types import Answer, AnswerKind, Reason, Trace

INPUT_KEYS = ("input", "query", "text", "prompt", "question")
"""The canonical key first: where several are present, the first of this order is read and the others are ignored."""
LABEL_KEYS = ("teacher", "teacher_output", "label", "intent", "output", "answer")

MAX_PROBLEMS = 20

_REASONS = {reason.value: reason for reason in Reason}
_KINDS = {kind.value: kind for kind in AnswerKind}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class TraceFile:
    """What a trace file held.

    `skipped` counts the bad lines left out and `problems` has the first 20 of them as `file:line: what is wrong`.
    `duplicates` counts lines whose `id` an earlier line had; the earlier one is kept, and they are not bad lines.
    """

    traces: list[Trace]
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    duplicates: int = 0


class _BadLine(Exception):  # noqa: N818 - never leaves this module
    """What is wrong with one line."""


def _silent(share: float) -> None:
    pass


def read_traces(path: str | Path, *, skip_bad: bool = False, on_read: Callable[[float], None] = _silent) -> TraceFile:
    """Read a JSONL file of traces.

    Blank lines and a byte order mark at the start are ignored. With `skip_bad`, bad lines are counted and left out.
    `on_read` is given the share of the bytes read so far, 0..1, about every per cent and at the end; where the size is
    not known beforehand (a pipe), only at the end.

    Raises:
        TraceError: the file cannot be read, holds no usable trace, or has a bad line (`file:line: what is wrong`).
    """
    traces: list[Trace] = []
    problems: list[str] = []
    seen: set[str] = set()
    skipped = duplicates = 0
    for number, line in read_lines(path, on_read):
        try:
            trace = _parse(line)
        except _BadLine as error:
            problem = f"{path}:{number}: {error}"
            if not skip_bad:
                raise TraceError(problem) from None
            skipped += 1
            if len(problems) < MAX_PROBLEMS:
                problems.append(problem)
            continue
        if trace.id is not None:
            if trace.id in seen:
                duplicates += 1
                continue
            seen.add(trace.id)
        traces.append(trace)
    if not traces:
        raise TraceError(
            f"{path}: no usable trace: {skipped} bad, first {problems[0]}" if problems else f"{path}: empty"
        )
    return TraceFile(traces, skipped, problems, duplicates)


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSONL: a reader finds the old file or the whole new one, never a part.

    A link is followed. What is no file (a pipe, a device) is written into as it is.

    Raises:
        TraceError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        _write_into(target, path, traces)
        return
    part = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            for trace in traces:
                file.write(to_line(trace))
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _write_into(target: Path, path: str | Path, traces: Iterable[Trace]) -> None:
    try:
        with target.open("wb") as pipe:
            pipe.writelines(map(to_line, traces))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error.strerror or error}") from error


def to_line(trace: Trace) -> bytes:
    """One trace as a line of JSON, newline included; what is not set is left out."""
    row: dict[str, Any] = {"input": storable(trace.input), "teacher": storable(trace.teacher)}
    if trace.kind is not AnswerKind.TEXT:
        row["kind"] = trace.kind.value
    for key in ("arguments", "id", "ground_truth", "mini"):
        text = getattr(trace, key)
        if text is not None:
            row[key] = storable(text)
    if trace.ts is not None:
        row["ts"] = trace.ts
    if trace.weight != 1.0:
        row["weight"] = trace.weight
    if trace.reason is not None:
        row["reason"] = trace.reason.value
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def storable(text: str) -> str:
    """The text with NUL and lone surrogates replaced by U+FFFD: neither UTF-8 files nor PostgreSQL can hold them."""
    # Most texts are plain, and these two looks cost a tenth of the search.
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def to_seconds(moment: str) -> float:
    """An ISO 8601 time as seconds since the epoch; without a zone it is UTC. Raises ValueError."""
    parsed = datetime.fromisoformat(moment)
    try:
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except OverflowError as error:
        raise ValueError(str(error)) from error


def merge(old: Sequence[Trace], new: Sequence[Trace]) -> list[Trace]:
    """Old traces, then those of `new` that are not among them.

    Two traces are the same one if they have the same `id`; the earlier is kept. Without ids, the k-th trace of an input
    and answer in `new` is the same as the k-th in `old`: a file given twice adds nothing, and how often an input occurs
    within a file still counts.
    """
    merged: list[Trace] = []
    seen: set[object] = set()
    for traces in (old, new):
        said: Counter[tuple[str, Answer]] = Counter()
        for trace in traces:
            pair = trace.input, trace.answer
            said[pair] += trace.id is None
            key = trace.id if trace.id is not None else (*pair, said[pair])
            if key not in seen:
                seen.add(key)
                merged.append(trace)
    return merged


def label_space(traces: Iterable[Trace]) -> dict[str, int]:
    """What the teacher wrote, texts and names of tools, sorted, each with the number of traces that have it.

    Answers of kind `other` are no labels.
    """
    return dict(sorted(Counter(trace.teacher for trace in traces if trace.kind is not AnswerKind.OTHER).items()))


def _parse(line: bytes | None) -> Trace:
    if line is None:
        raise _BadLine(f"longer than {MAX_LINE_BYTES // 1024**2} MB")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _BadLine(_why_not_json(line, error)) from None
    if type(row) is not dict:
        raise _BadLine(f"expected a JSON object, found {_kind(row)}")
    found_input = _first(row, INPUT_KEYS)
    found_label = _first(row, LABEL_KEYS)
    text = _input(row, found_input)
    if len(row) == 2:
        return Trace(text, _label(row[found_label], found_label))
    kind, arguments = _form(row)
    # A refusal may come without a word, or with a line end; it is no label.
    said = row[found_label]
    return Trace(
        input=text,
        teacher=said if kind is AnswerKind.OTHER and type(said) is str else _label(said, found_label),
        id=_id(row.get("id")),
        ground_truth=_optional_label(row, "ground_truth"),
        mini=_optional_label(row, "mini"),
        ts=_seconds(row.get("ts")),
        weight=_weight(row.get("weight")),
        reason=_reason(row.get("reason")),
        kind=kind,
        arguments=arguments,
    )


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return f"not valid UTF-8 at byte {wrong.start + 1} of the line"
    return f"not valid JSON: {error.msg} at column {error.colno}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in row:
            return key
    raise _BadLine(f"no {keys[0]!r} (or {', '.join(keys[1:])})")


def _reason(value: Any) -> Reason | None:
    # Other people's files use the word for other things: what is not of the closed list is not ours.
    return _REASONS.get(value) if type(value) is str else None


def _form(row: dict[str, Any]) -> tuple[AnswerKind, str | None]:
    """What the answer is, and its arguments where it is a tool call."""
    # Other people's files use these words for other things, too.
    kind = row.get("kind")
    found = _KINDS.get(kind, AnswerKind.TEXT) if type(kind) is str else AnswerKind.TEXT
    arguments = row.get("arguments")
    if found is not AnswerKind.TOOL or arguments is None:
        return found, None
    if type(arguments) is dict:
        return found, orjson.dumps(arguments).decode()
    if type(arguments) is not str:
        raise _BadLine(f"'arguments' must be a string of JSON, or an object, found {_kind(arguments)}")
    return found, arguments


def _input(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if type(value) is not str:
        if type(value) is list and value and type(value[0]) is dict:
            raise _BadLine(f"{key!r} is a list of chat messages: give the text to decide on as one string")
        raise _BadLine(f"{key!r} must be a string, found {_kind(value)}")
    if not value or value.isspace():
        raise _BadLine(f"empty input ({key!r})")
    return value


def _label(value: Any, key: str) -> str:
    if type(value) is str:
        if not value or value.isspace():
            raise _BadLine(f"empty label ({key!r})")
        return sys.intern(value)  # a million traces share the few strings that their labels are
    if type(value) in (int, float, bool):
        return orjson.dumps(value).decode()
    raise _BadLine(f"{key!r} must be a label (a string, a number or a boolean), found {_kind(value)}")


def _optional_label(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value is None else _label(value, key)


def _id(value: Any) -> str | None:
    if value is None:
        return None
    # Not floats: integers beyond 64 bits are read as floats, and two of them could become the same id.
    if type(value) is int or (type(value) is str and value):
        return str(value)
    raise _BadLine("'id' must be a string that is not empty, or an integer of up to 64 bits")


def _weight(value: Any) -> float:
    if value is None:
        return 1.0
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise _BadLine("'weight' must be a number above 0")
    return float(value)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) in (int, float) and math.isfinite(value):
        return float(value)
    try:
        return to_seconds(value)
    except (TypeError, ValueError):
        raise _BadLine("'ts' must be seconds since the epoch or an ISO 8601 time") from None
