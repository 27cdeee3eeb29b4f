"""Trace files: what is read, what is refused, and with which words."""

import io
import json
import os
import re
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from policies import console, lines, traces
from policies.errors import TraceError
from policies.traces import label_space, merge, read_traces, write_traces
from policies.types import AnswerKind, Trace

GOOD = b'{"input": "where is my card", "teacher": "card_arrival"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "traces.jsonl"


def line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


@pytest.mark.parametrize("key", ["input", "query", "text", "prompt", "question"])
def test_input_aliases(file: Path, key: str) -> None:
    """Every documented alias of `input` is read."""
    file.write_bytes(line(**{key: "hello", "teacher": "greeting"}))
    assert read_traces(file).traces == [Trace("hello", "greeting")]


@pytest.mark.parametrize("key", ["teacher", "teacher_output", "label", "intent", "output", "answer"])
def test_label_aliases(file: Path, key: str) -> None:
    """Every documented alias of `teacher` is read."""
    file.write_bytes(line(**{"input": "hello", key: "greeting"}))
    assert read_traces(file).traces == [Trace("hello", "greeting")]


def test_canonical_key_wins(file: Path) -> None:
    """Where a canonical key and an alias are both present, the canonical one is read and the alias is ignored."""
    file.write_bytes(line(text="alias", input="canonical", label="alias", teacher="canonical"))
    assert read_traces(file).traces == [Trace("canonical", "canonical")]


def test_optional_fields(file: Path) -> None:
    """The optional fields are read, and null means not given."""
    file.write_bytes(
        line(input="a", teacher="x", id=7, ground_truth="y", mini=3, ts="2026-01-02T03:04:05Z", weight=20)
        + line(input="b", teacher="x", id=None, ground_truth=None, mini=None, ts=None, weight=None)
        + line(input="c", teacher="x", ts=12)
    )
    assert read_traces(file).traces == [
        Trace("a", "x", id="7", ground_truth="y", mini="3", ts=1767323045.0, weight=20.0),
        Trace("b", "x"),
        Trace("c", "x", ts=12.0),
    ]


def test_time_without_zone_is_utc(file: Path) -> None:
    """An ISO time without a zone is taken as UTC, whatever the machine's own zone."""
    file.write_bytes(line(input="a", teacher="x", ts="1970-01-02"))
    assert read_traces(file).traces[0].ts == 86400.0


def test_kinds_of_answers(file: Path) -> None:
    """A tool call has its arguments as written, or as an object; prose may be without a word, or a line end."""
    file.write_bytes(
        line(input="a", teacher="block", kind="tool", arguments='{"now":  true}')
        + line(input="a", teacher="block", kind="tool", arguments={"now": True, "who": "\u00e9"})
        + line(input="a", teacher="block", kind="tool", arguments="{")
        + line(input="a", teacher="block", kind="tool", arguments=None)
        + line(input="a", teacher="", kind="other")
        + line(input="a", teacher=" \n", kind="other")
        + line(input="a", teacher='{"x": 1}', kind=None)
    )
    tool = AnswerKind.TOOL
    assert read_traces(file).traces == [
        Trace("a", "block", kind=tool, arguments='{"now":  true}'),
        Trace("a", "block", kind=tool, arguments='{"now":true,"who":"\u00e9"}'),
        Trace("a", "block", kind=tool, arguments="{"),
        Trace("a", "block", kind=tool),
        Trace("a", "", kind=AnswerKind.OTHER),
        Trace("a", " \n", kind=AnswerKind.OTHER),
        Trace("a", '{"x": 1}'),
    ]
    again = file.with_name("again.jsonl")
    write_traces(again, read_traces(file).traces)
    assert read_traces(again).traces == read_traces(file).traces
    assert label_space(read_traces(file).traces) == {"block": 4, '{"x": 1}': 1}


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "chat"},
        {"kind": 1},
        {"kind": ["tool"]},
        {"kind": "text", "arguments": "{}"},
        {"arguments": "see below"},
        {"arguments": {"a": 1}},
        {"kind": "call", "arguments": 5},
    ],
)
def test_other_peoples_words_are_no_bad_lines(file: Path, other: dict[str, object]) -> None:
    """A kind that is none of ours means text, and arguments count only beside a tool call."""
    file.write_bytes(line(input="a", teacher="x", **other))
    assert read_traces(file).traces == [Trace("a", "x")]


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.5, "1.5"), (True, "true"), (" refund ", " refund ")])
def test_labels_become_text(file: Path, value: object, text: str) -> None:
    """Numbers and booleans become their JSON text; strings are kept to the character."""
    file.write_bytes(line(input="a", teacher=value))
    assert read_traces(file).traces == [Trace("a", text)]


BAD_LINES = [
    (b'{"input": "a", "teacher": ', "not valid JSON: unexpected end of data at column 26"),
    (b'{"input": "a", "teacher": NaN}', "not valid JSON: unexpected character"),
    (b'{"input": "\\ud800", "teacher": "x"}', "not valid JSON: no low surrogate"),
    (b'{"input": "\xff", "teacher": "x"}', "not valid UTF-8 at byte 12"),
    (b'["a", "x"]', "expected a JSON object, found a list"),
    (b"null", "expected a JSON object, found null"),
    (b'{"teacher": "x"}', "no 'input' (or query, text, prompt, question)"),
    (b'{"input": "a"}', "no 'teacher' (or teacher_output, label, intent, output, answer)"),
    (b'{"input": "", "teacher": "x"}', "empty input ('input')"),
    (b'{"text": " \\n\\u00a0", "teacher": "x"}', "empty input ('text')"),
    (b'{"input": 5, "teacher": "x"}', "'input' must be a string, found a number"),
    (b'{"input": null, "text": "a", "teacher": "x"}', "'input' must be a string, found null"),
    (b'{"input": [{"role": "user", "content": "a"}], "teacher": "x"}', "'input' is a list of chat messages"),
    (b'{"input": "a", "label": "  "}', "empty label ('label')"),
    (b'{"input": "a", "teacher": null}', "'teacher' must be a label (a string, a number or a boolean), found null"),
    (b'{"input": "a", "teacher": ["x"]}', "'teacher' must be a label (a string, a number or a boolean), found a list"),
    (
        b'{"input": "a", "teacher": {"x": 1}}',
        "'teacher' must be a label (a string, a number or a boolean), found an object",
    ),
    (
        b'{"input": "a", "teacher": "x", "kind": "tool", "arguments": [1]}',
        "'arguments' must be a string of JSON, or an object, found a list",
    ),
    (b'{"input": "a", "teacher": null, "kind": "other"}', "'teacher' must be a label"),
    (b'{"input": "a", "teacher": "", "kind": "tool"}', "empty label ('teacher')"),
    (b'{"input": "a", "teacher": "x", "mini": []}', "'mini' must be a label"),
    (b'{"input": "a", "teacher": "x", "ground_truth": ""}', "empty label ('ground_truth')"),
    (b'{"input": "a", "teacher": "x", "id": ""}', "'id' must be"),
    (b'{"input": "a", "teacher": "x", "id": 123456789012345678901234567890}', "'id' must be"),
    (b'{"input": "a", "teacher": "x", "weight": 0}', "'weight' must be a number above 0"),
    (b'{"input": "a", "teacher": "x", "weight": -1}', "'weight' must be a number above 0"),
    (b'{"input": "a", "teacher": "x", "weight": "2"}', "'weight' must be a number above 0"),
    (b'{"input": "a", "teacher": "x", "weight": 1e400}', "not valid JSON: number is infinity"),
    (b'{"input": "a", "teacher": "x", "ts": "yesterday"}', "'ts' must be seconds since the epoch or an ISO 8601 time"),
    (b'{"input": "a", "teacher": "x", "ts": true}', "'ts' must be"),
]


@pytest.mark.parametrize(("bad", "cause"), BAD_LINES)
def test_bad_line(file: Path, bad: bytes, cause: str) -> None:
    """A bad line is an error naming file, line and cause; with `skip_bad` it is counted and its neighbours are read."""
    file.write_bytes(GOOD + b"\n" + bad + b"\n" + GOOD)
    with pytest.raises(TraceError, match="^" + re.escape(f"{file}:3: {cause}")) as error:
        read_traces(file)
    result = read_traces(file, skip_bad=True)
    assert len(result.traces) == 2
    assert result.skipped == 1
    assert result.problems == [str(error.value)]


def test_only_first_problems_are_kept(file: Path) -> None:
    """All bad lines are counted, and the first twenty are described."""
    file.write_bytes(b"x\n" * 30 + GOOD)
    result = read_traces(file, skip_bad=True)
    assert (result.skipped, len(result.problems), len(result.traces)) == (30, 20, 1)


def test_line_over_the_limit(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line over the limit is bad without being held in memory whole, and line numbers stay right after it."""
    for module in (lines, traces):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 1024 * 1024)
    file.write_bytes(GOOD + line(input="a" * 3_000_000, teacher="x") + b"x\n" + GOOD)
    result = read_traces(file, skip_bad=True)
    assert result.problems[0] == f"{file}:2: longer than 1 MB"
    assert result.problems[1].startswith(f"{file}:3: not valid JSON")
    assert len(result.traces) == 2


def test_long_input(file: Path) -> None:
    """An input of a megabyte is read whole."""
    file.write_bytes(line(input="a" * 1_000_000, teacher="x"))
    assert len(read_traces(file).traces[0].input) == 1_000_000


def test_windows_file(file: Path) -> None:
    """A byte order mark, CRLF line ends, blank lines and a missing last newline do not matter."""
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n  \n" + GOOD.rstrip())
    assert read_traces(file).traces == [Trace("where is my card", "card_arrival")] * 2


def test_duplicates(file: Path) -> None:
    """The first line with an id is kept and later ones are counted; equal lines without an id are all kept."""
    file.write_bytes(line(input="a", teacher="x", id="1") + line(input="b", teacher="y", id="1") + GOOD + GOOD)
    result = read_traces(file)
    assert [trace.input for trace in result.traces] == ["a", "where is my card", "where is my card"]
    assert (result.duplicates, result.skipped) == (1, 0)


def test_one_label_and_rare_labels(file: Path) -> None:
    """Files with one label, or with labels seen once, are readable: what to make of them is the fit's business."""
    file.write_bytes(GOOD * 3)
    assert label_space(read_traces(file).traces) == {"card_arrival": 3}
    file.write_bytes(GOOD * 2 + line(input="a", teacher="a_label_seen_once"))
    assert label_space(read_traces(file).traces) == {"a_label_seen_once": 1, "card_arrival": 2}


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n \r\n"])
def test_empty_file(file: Path, content: bytes) -> None:
    """A file without a single line of content is an error naming it."""
    file.write_bytes(content)
    with pytest.raises(TraceError, match=re.escape(f"{file}: empty")):
        read_traces(file)


def test_nothing_usable(file: Path) -> None:
    """A file of which every line is bad is an error even with `skip_bad`, and shows the first cause."""
    file.write_bytes(b"x\ny\n")
    with pytest.raises(TraceError, match=re.escape(f"{file}: no usable trace: 2 bad, first {file}:1: not valid JSON")):
        read_traces(file, skip_bad=True)


def test_lines_across_blocks(file: Path) -> None:
    """Lines of every length are read whole and numbered right wherever the blocks of a long file end."""
    texts = [f"Nachricht {i} über " + "ä" * (i * 37 % 3001) for i in range(2000)]
    rows = [line(input=text, teacher=f"label_{i % 7}") for i, text in enumerate(texts)]
    file.write_bytes(b"\xef\xbb\xbf" + b"".join(rows) + b"x\n" + GOOD.rstrip())
    assert file.stat().st_size > 4 * 1024 * 1024
    result = read_traces(file, skip_bad=True)
    assert [trace.input for trace in result.traces] == [*texts, "where is my card"]
    assert result.problems[0].startswith(f"{file}:2001: not valid JSON")


def test_share_of_bytes_read(file: Path) -> None:
    """What shows the progress hears rising shares, no more than about a hundred, and 1 once, at the end."""
    file.write_bytes(GOOD + (b" " * 1023 + b"\n") * 150 * 1024)
    shares: list[float] = []
    read_traces(file, on_read=shares.append)
    assert shares == sorted(set(shares))
    assert 50 <= len(shares) <= 101
    assert all(0 < share < 1 for share in shares[:-1])
    assert shares[-1] == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_reading_bar(file: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """A terminal sees a bar while a file is read; a pipe sees nothing."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=shown, force_terminal=terminal, width=80))
    file.write_bytes(GOOD)
    with console.reading_bar("[b].jsonl") as on_read:
        read_traces(file, on_read=on_read)
    assert ("reading [b].jsonl" in shown.getvalue()) is terminal
    assert ("100%" in shown.getvalue()) is terminal


def test_memory_does_not_grow_with_the_file(file: Path) -> None:
    """A long file is read in a few megabytes beside the traces it holds."""
    file.write_bytes(GOOD + (b" " * 1023 + b"\n") * 64 * 1024)
    tracemalloc.start()
    try:
        read_traces(file)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_equal_labels_are_one_string(file: Path) -> None:
    """Traces with the same label share one string, whatever key it stood under."""
    file.write_bytes(line(input="a", teacher="a label") + line(input="b", label="a label", mini="a label"))
    first, second = read_traces(file).traces
    assert first.teacher is second.teacher is second.mini


def test_pipe(tmp_path: Path) -> None:
    """What cannot be mapped is read all the same, and a progress bar hears of it at its end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(GOOD * 50_000 + b"x",))
    writer.start()
    shares: list[float] = []
    result = read_traces(pipe, skip_bad=True, on_read=shares.append)
    writer.join()
    assert len(result.traces) == 50_000
    assert result.problems[0].startswith(f"{pipe}:50001: not valid JSON")
    assert shares == [1]


@pytest.mark.parametrize("kept", [0, 3 * 1024 * 1024 + 1])
def test_file_cut_short_while_read(file: Path, kept: int) -> None:
    """A file that becomes shorter while it is read is an error, never the end of the process."""
    file.write_bytes(GOOD * 200_000)

    def cut(share: float) -> None:
        if share > 0.1:
            os.truncate(file, kept)

    with pytest.raises(TraceError, match=re.escape(f"{file}: cannot be read: the file became shorter meanwhile")):
        read_traces(file, on_read=cut)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A missing file and a folder are errors naming the path."""
    with pytest.raises(TraceError, match=re.escape(f"{tmp_path / 'none'}: cannot be read: No such file")):
        read_traces(tmp_path / "none")
    with pytest.raises(TraceError, match=re.escape(f"{tmp_path}: cannot be read: Is a directory")):
        read_traces(tmp_path)


def test_round_trip(file: Path) -> None:
    """What is written is read back equal; only what is set is written; no stray file stays behind."""
    full = Trace("ein Stück\u2028", "x", id="1", ground_truth="y", mini="z", ts=1.5, weight=20.0)
    write_traces(file, [full, Trace("b", "x")])
    assert read_traces(file).traces == [full, Trace("b", "x")]
    assert file.read_bytes().splitlines()[-1] == b'{"input":"b","teacher":"x"}'
    assert list(file.parent.iterdir()) == [file]


def test_unstorable_characters_are_replaced(file: Path) -> None:
    """NUL and lone surrogates are written as U+FFFD."""
    write_traces(file, [Trace("a\x00b\ud800c", "x")])
    assert read_traces(file).traces == [Trace("a\ufffdb\ufffdc", "x")]


def test_failed_write_keeps_the_old_file(file: Path) -> None:
    """A write that fails half-way leaves the old file as it was and nothing beside it."""
    write_traces(file, [Trace("old", "x")])

    def broken() -> Any:
        yield Trace("new", "x")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_traces(file, broken())
    assert read_traces(file).traces == [Trace("old", "x")]
    assert list(file.parent.iterdir()) == [file]


def test_write_to_a_missing_folder(tmp_path: Path) -> None:
    """A file that cannot be written is an error naming it."""
    with pytest.raises(TraceError, match="cannot be written: No such file"):
        write_traces(tmp_path / "none" / "traces.jsonl", [Trace("a", "x")])


def test_merge() -> None:
    """Merging keeps one trace per id, the earlier one; without ids, the k-th of the same words is the same trace."""
    old = [Trace("a", "x", id="1"), Trace("b", "x")]
    new = [Trace("a changed", "y", id="1"), Trace("b", "x"), Trace("c", "x", id="2"), Trace("c", "x", id="2")]
    assert merge(old, new) == [old[0], old[1], Trace("c", "x", id="2")]
    assert merge(old, [Trace("b", "x"), Trace("b", "x"), Trace("b", "y")]) == [*old, Trace("b", "x"), Trace("b", "y")]


def test_merge_tells_calls_apart_by_their_arguments() -> None:
    """The same tool with other arguments, or the same word as a text, is another answer."""
    traces = [
        Trace("a", "x"),
        Trace("a", "x", kind=AnswerKind.TOOL, arguments="{}"),
        Trace("a", "x", kind=AnswerKind.TOOL, arguments='{"a": 1}'),
    ]
    assert merge(traces[:1], traces) == traces
    assert merge(traces, traces) == traces


def test_speed(file: Path) -> None:
    """Ten thousand lines are read in a tenth of a second (asserted with room for a busy machine)."""
    file.write_bytes(
        b"".join(line(input=f"message {i} about my card", teacher=f"label_{i % 77}") for i in range(10_000))
    )
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        read_traces(file)
        best = min(best, time.perf_counter() - started)
    assert best < 0.3
