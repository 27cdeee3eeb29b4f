"""The benches' command lines, tables and made-up data, on values small enough to check by eye; no bench is run."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import (
    calibration,
    caller,
    drift_plot,
    drift_scenarios,
    drift_tables,
    frontier,
    load,
    load_tables,
    loads,
    peers,
    scale,
    servers,
    stream,
    verdict,
    wrk,
)
from gateway.demo import processes
from policies.policy import Policy
from policies.types import Trace
from tests.traces_maker import make_traces

STAMP = {"cpu": "CPU", "cores": 2, "python": "3.11.7", "commit": "abc", "date": "2026-01-02T00:00:00+00:00"}


def _row(system: str, name: str, target: float, coverage: float | None, agreement: float | None = None) -> Any:
    row: Any = {"system": system, "set": name, "target": target, "commit": "abc"}
    row |= {"fit": {"refused": coverage is None, "coverage": coverage}, "fit_seconds": 12.3}
    if coverage is not None:
        times = {"decide_us_p50": 50.4, "decide_us_p99": 1234.5}
        row["live"] = {"n": 10, "coverage": coverage, "teacher_agreement": agreement, **times}
    return row


def _result(*rows: Any) -> dict[str, Any]:
    return {
        "stamp": STAMP,
        "seed": 0,
        "peer": "tracer-llm",
        "encoder_us_p50": {"banking77": 1410.0},
        "rows": list(rows),
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--sets", "banking78"],
        ["--systems", "ours,theirs"],
        ["--targets", "0.9,1.5"],
        ["--targets", "high"],
        ["--resume"],
    ],
)
def test_frontier_refuses_what_it_does_not_know(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown sets and systems, impossible targets and --resume without a file end in one line on stderr."""
    with pytest.raises(SystemExit) as raised:
        frontier.parse(argv)
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_frontier_runs_everything_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All sets, targets and systems; --no-peer takes one away."""
    monkeypatch.setattr(frontier, "MODEL", tmp_path)
    found = frontier.parse([])
    assert (found.sets, found.targets) == (list(frontier.SETS), [0.90, 0.95, 0.97, 0.99])
    assert found.systems == list(frontier.SYSTEMS)
    assert "tracer-llm" not in frontier.parse(["--no-peer"]).systems


def test_without_the_model_only_rows_on_text_are_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing transformer takes its rows away and says so; the others run."""
    monkeypatch.setattr(frontier, "MODEL", tmp_path / "missing")
    assert frontier.parse([]).systems == ["ours", "ours-grouped"]
    assert "TRACER_MODELS" in capsys.readouterr().err


def test_a_row_says_whether_its_promise_was_kept() -> None:
    """Agreement at the target is kept, below it broken; a refusal has no live figures; a failure says why."""
    kept = frontier.row_line(_row("ours", "banking77", 0.95, 0.9, 0.95))
    assert kept == "| ours | banking77 | 0.95 | 0.900 | 0.900 | 0.9500 (kept) |  | 12 s | 50 / 1,234 us |"
    assert "0.9499 (**broken**)" in frontier.row_line(_row("ours", "banking77", 0.95, 0.9, 0.9499))
    assert "none handled" in frontier.row_line(_row("ours", "banking77", 0.95, 0.9))
    assert "| refused |  |  |  | 12 s |  |" in frontier.row_line(_row("tracer-llm", "banking77", 0.99, None))
    failed = {"system": "ours", "set": "banking77", "target": 0.95, "error": "no such | option"}
    assert "failed: no such / option" in frontier.row_line(failed)


def test_every_line_of_a_table_has_its_columns() -> None:
    """Refused and failed rows are as wide as the others."""
    failed = {"system": "ours", "set": "banking77", "target": 0.9, "error": "x", "commit": "abc"}
    rows = [_row("ours", "banking77", 0.95, 0.9, 0.96), _row("tracer-llm", "clinc150", 0.99, None), failed]
    table = frontier.render(_result(*rows)).partition("\n\n")[0].splitlines()
    assert {line.count("|") for line in table} == {len(frontier.HEAD) + 1}


def test_the_share_without_transformer_is_what_the_first_stage_answered() -> None:
    """It stands on the transformer's rows alone, and is nothing where every call needs it."""
    row = _row("ours-transformer", "banking77", 0.95, 0.9, 0.96)
    row["live"]["by_stage"] = {"0": 7, "1": 2}
    row["fit"]["method"] = "rsb"
    assert frontier.without_transformer(row) == "0.700"
    row["live"]["by_stage"] = {"1": 9}
    assert frontier.without_transformer(row) == "0.000"
    row["live"]["by_stage"], row["fit"]["method"] = {"0": 9}, "l2d"
    assert frontier.without_transformer(row) == "0.000"
    assert frontier.without_transformer({**row, "system": "ours"}) == ""


def test_a_commit_is_shortened_but_keeps_its_changes() -> None:
    """A tree that differs from its commit says so in the tables too."""
    assert [frontier.short(commit) for commit in ("0123456789abcdef", "0123456789abcdef+changes", None)] == [
        "0123456789ab",
        "0123456789ab+changes",
        "?",
    ]


def test_out_of_scope_rows_make_their_own_table() -> None:
    """Only policies for 0.97, in the order of the systems, whatever the order they were measured in."""
    theirs = {**_row("tracer-llm", "clinc150", 0.97, 0.8, 0.98), "out_of_scope": {"n": 1000, "handled": 300}}
    ours = {**_row("ours", "clinc150", 0.97, 0.9, 0.98), "out_of_scope": {"n": 1000, "handled": 150}}
    other = {**_row("ours", "clinc150", 0.95, 0.9, 0.98), "out_of_scope": {"n": 1000, "handled": 999}}
    _, strange, line = frontier.render(_result(theirs, other, ours)).split("\n\n")
    assert [row.split(" | ")[-1] for row in strange.splitlines()[2:]] == ["0.150 |", "0.300 |"]
    assert "commit abc" in line


def test_resume_keeps_rows_and_drops_failures(tmp_path: Path) -> None:
    """Failed rows are measured again; rows of another seed are not mixed in."""
    file = tmp_path / "frontier.json"
    assert frontier.read_result(file, 0)["rows"] == []
    failed = {"system": "ours", "set": "clinc150", "target": 0.9, "error": "x", "commit": "abc"}
    file.write_text(json.dumps(_result(_row("ours", "banking77", 0.95, 0.9, 0.96), failed)))
    assert [row["set"] for row in frontier.read_result(file, 0)["rows"]] == ["banking77"]
    with pytest.raises(SystemExit, match="seed 0"):
        frontier.read_result(file, 1)


def test_docs_are_replaced_only_between_their_markers(tmp_path: Path) -> None:
    """The text around stays, twice gives the same, and a file without the marker is refused."""
    file = tmp_path / "benchmarks.md"
    file.write_text("a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nother\n<!-- end -->\n")
    frontier.write_docs(file, "one", "new")
    frontier.write_docs(file, "one", "new")
    assert file.read_text() == "a\n<!-- one -->\nnew\n<!-- end -->\nb\n<!-- two -->\nother\n<!-- end -->\n"
    with pytest.raises(ValueError, match="three"):
        frontier.write_docs(file, "three", "new")


@pytest.mark.parametrize("marker", ["bench/frontier.py", "bench/scale.py", "bench/peers.py"])
def test_the_docs_have_a_place_for_every_table(marker: str) -> None:
    """`--write-docs` finds its markers in docs/benchmarks.md."""
    before, start, rest = frontier.DOCS.read_text().partition(f"<!-- {marker} -->")
    assert before
    assert start
    assert "<!-- end -->" in rest


def test_made_rows_are_distinct_repeatable_and_begin_with_the_traces() -> None:
    """Each differs from all before it by more than case and space, has a label, and comes back with its seed."""
    traces = [Trace("where is my card", "arrival"), Trace("card not here yet", "arrival"), Trace("top up", "top_up")]
    made = list(scale.rows(traces, 300, seed=1))
    assert made[:3] == [(trace.input, trace.teacher) for trace in traces]
    assert len({text.lower() for text, _ in made}) == len(made) == 300
    assert {label for _, label in made} == {"arrival", "top_up"}
    assert made == list(scale.rows(traces, 300, seed=1))
    assert made != list(scale.rows(traces, 300, seed=2))


def test_a_changed_row_is_never_empty() -> None:
    """One word stays one word at least."""
    draw = random.Random(0)
    assert all(scale.change(["help"], ["me"], draw) for _ in range(500))


def test_scale_compares_with_its_smallest_size() -> None:
    """Ten times the rows in five times the seconds is half of linear."""
    fit = {"refused": False, "coverage": 0.9}
    live = {"coverage": 0.91, "teacher_agreement": 0.96}
    first = {"rows": 10_000, "fit": fit, "seconds": 8.0, "peak_bytes": 500_000_000, "live": live}
    second = {"rows": 100_000, "fit": fit, "seconds": 40.0, "peak_bytes": None, "live": live}
    assert scale.row_line(first, first, 0.95).startswith("| 10,000 | 8 s | 8.0 | 1.00 | 0.50 GB |")
    assert scale.row_line(second, first, 0.95).startswith("| 100,000 | 40 s | 4.0 | 0.50 | ? |")
    refused = {**second, "fit": {"refused": True}, "live": None}
    assert scale.row_line(refused, first, 0.95).endswith("| refused |  |  |")


@pytest.mark.parametrize("argv", [["--rows", "0"], ["--rows", "many"]])
def test_scale_refuses_impossible_sizes(argv: list[str]) -> None:
    """A size is a number of at least one row."""
    with pytest.raises(SystemExit):
        scale.parse(argv)


def test_embeddings_are_cached_by_text_and_encoder(tmp_path: Path) -> None:
    """The same texts are encoded once; other texts never get their file."""
    encoder = _Encoder()
    first = frontier.embeddings(encoder, ["a", "bb"], tmp_path, "set")  # type: ignore[arg-type]
    assert frontier.embeddings(encoder, ["a", "bb"], tmp_path, "set") == first  # type: ignore[arg-type]
    assert frontier.embeddings(encoder, ["a", "c"], tmp_path, "set") != first  # type: ignore[arg-type]
    assert encoder.calls == 2
    assert np.load(first).tolist() == [[1.0], [2.0]]


def test_streams_are_compared_event_by_event() -> None:
    """Times are read from whole events only, and what the gateway adds is the difference of the percentiles."""
    assert stream.stamps(b'x"content":"12"}\n\ny"content":"345"}\n\nz"content":"6') == [12, 345]
    direct = stream.Times([1.0] * 9, [0.5] * 9, [0.1] * 90)
    through = stream.Times([1.5] * 9, [0.6] * 9, [0.3] * 90)
    row = stream.as_row(32, direct, through)
    assert (row["n_streams"], row["n_later"]) == (9, 90)
    assert (row["added_asked_ms"], row["added_later_ms"]) == ({"p50": 0.5, "p99": 0.5}, {"p50": 0.2, "p99": 0.2})
    assert "| 32 | delay of the first event, ms | 0.50 / 0.50 | 0.60 / 0.60 | 0.10 / 0.10 |" in stream.table([row])


@pytest.mark.parametrize("argv", [["--streams", "0"], ["--streams", "x"], ["--rounds", "0"], ["--interval-ms", "-1"]])
def test_stream_refuses_impossible_numbers(argv: list[str]) -> None:
    """There is at least one of each."""
    with pytest.raises(SystemExit):
        stream.parse(argv)


class _Encoder:
    """The length of a text as its vector."""

    identity = {"kind": "length"}  # noqa: RUF012
    calls = 0

    def encode_many(self, texts: list[str], threads: int) -> Any:
        """(n, 1)."""
        assert threads >= 1
        self.calls += 1
        return np.array([[len(text)] for text in texts], np.float32)


def test_calibration_knows_its_data_sets(capsys: pytest.CaptureFixture[str]) -> None:
    """Both by default; an unknown one ends in one line on stderr."""
    assert calibration.parse([]).sets == list(calibration.SETS)
    with pytest.raises(SystemExit) as raised:
        calibration.parse(["--sets", "banking78"])
    assert raised.value.code == 2
    assert "banking78" in capsys.readouterr().err


def test_calibration_measures_what_the_policy_says(policy_folder: Path) -> None:
    """One row: calls that can be scored, their agreement, and an error that is no larger than it can be."""
    row = calibration.measure(Policy.load(policy_folder), [*make_traces(200, seed=3), Trace("", "refund")])
    assert row["calls"] == 200
    assert sum(rows for rows, _, _ in row["bins"]) == 200
    assert abs(row["agreement"] - row["mean_probability"]) <= row["calibration_error"] + 1e-9 < 0.2
    assert calibration.line({"set": "banking77", **row}).count("|") == len(calibration.HEAD) + 1


_SAID = """Running 3s test @ http://127.0.0.1:9000/
  1000 requests in 2.00s, 1.00MB read

FIGURES {"requests": 1000, "seconds": 2.0, "p50_us": 97, "p99_us": 210, "max_us": 4000, "errors": {"status": 10}}
"""


def test_what_wrk_says_is_read_and_failed_calls_are_no_part_of_its_rate() -> None:
    """Percentiles in whole microseconds; a run without the script's line is an error that shows what was said."""
    found = wrk.read(_SAID)
    assert (found["p50_us"], found["p99_us"], found["errors"]) == (97, 210, {"status": 10})
    assert found["calls_a_second"] == 495.0
    with pytest.raises(wrk.LoadError, match="unable to connect"):
        wrk.read("unable to connect to 127.0.0.1:9000")


def test_requests_are_whole_and_can_be_told_apart(tmp_path: Path) -> None:
    """Length, line break, bytes: a body may hold anything."""
    first = wrk.http_request(80, "/v1/chat/completions", {"Authorization": "Bearer x"}, b'{"a": "\n"}')
    head, _, body = first.partition(b"\r\n\r\n")
    assert body == b'{"a": "\n"}'
    assert {b"Content-Length: 10", b"Authorization: Bearer x"} <= set(head.split(b"\r\n"))
    wrk.write_requests(tmp_path / "requests", [first, b"GET"])
    assert (tmp_path / "requests").read_bytes() == b"%d\n%b3\nGET" % (len(first), first)


def _load(connections: int, **figures: float) -> dict[str, Any]:
    return {"connections": connections, "requests": 9, "cpu_us": 50.0, **figures}


def _measured(run: int, *p99s: float, connections: int = 32) -> dict[str, Any]:
    rounds = [
        {
            "round": number,
            "loads": {str(connections): _load(connections, p50_us=80, p99_us=p99, calls_a_second=20_000)},
        }
        for number, p99 in enumerate(p99s)
    ]
    return {"run": run, "rounds": rounds, "faults": {}, "memory": {"rss": 90_000_000, "pss": 80_000_000}}


P99 = next(bar for bar in verdict.BARS if (bar.row, bar.figure) == ("handled", "p99_us"))


def test_rows_are_compared_round_by_round() -> None:
    """The median of the rounds' ratios, not the ratio of medians; a round that one row lacks does not count."""
    rows = {"handled": _measured(1, 100, 900, 300), "empty": _measured(1, 100, 300, 200, 1)}
    found = verdict.judge(P99, rows, cores=2)
    assert (found.value, found.low, found.high, found.missed) == (1.5, 1.0, 3.0, False)
    rows["handled"] = _measured(1, 100, 900, 302)
    assert verdict.judge(P99, rows, cores=2).missed


def test_a_bar_without_its_rows_is_neither_met_nor_missed() -> None:
    """Missing rows, rows of different runs and loads that nothing answered are said to be so."""
    rows = {"handled": _measured(1, 100), "empty": _measured(2, 100)}
    assert verdict.judge(P99, rows, cores=2).why == "not measured in one run"
    assert verdict.judge(P99, {"handled": rows["handled"]}, cores=2).why == "not measured: empty"
    rows["empty"]["rounds"][0]["loads"]["32"]["requests"] = 0
    assert not verdict.judge(P99, rows, cores=2).missed
    text = verdict.bars_table([verdict.judge(bar, {}, 2) for bar in verdict.BARS])
    assert "missed" not in text
    assert {line.count("|") for line in text.splitlines()} == {6}


def test_two_workers_are_judged_only_where_the_load_leaves_them_a_core_each() -> None:
    """On two cores the figure is shown and decides nothing."""
    bar = next(bar for bar in verdict.BARS if bar.row == "new-2")
    rows = {"new-2": _measured(1, 100), "new": _measured(1, 100)}
    shared, own = verdict.judge(bar, rows, cores=2), verdict.judge(bar, rows, cores=4)
    assert (shared.value, shared.missed, shared.why) == (1.0, False, "not decided on 2 cores")
    assert own.missed


def test_the_table_of_peers_has_a_line_for_each_row_and_says_what_failed() -> None:
    """Microseconds become milliseconds, bytes megabytes; faults and rows left out are named below."""
    rows = {"handled": _measured(1, 1_234), "empty": _measured(1, 100_400)}
    rows["empty"]["faults"] = {"status errors of wrk (32 connections)": 1_000}
    stamp = STAMP | {"packages": {"uvicorn": "0.54.0"}}
    options = {"rounds": 5, "seconds": 3, "slow_rounds": 2, "slow_seconds": 9, "cores": "cores left to the system"}
    runs = [{"id": 1, "stamp": stamp, "options": options, "versions": {"wrk": "4.1.0", "node": None}}]
    text = verdict.render({"runs": runs, "rows": rows, "absent": {"portkey": "node is missing"}}, peers.TITLES)
    assert "| **ours, handled**: texts seen before | 0.080 / 1.2 | 20,000 | 50 | 90 / 80 |" in text
    assert "| empty Starlette app on uvicorn (!) | 0.080 / 100 | 20,000 | 50 | 90 / 80 |" in text
    assert "- (!) empty Starlette app on uvicorn: 1,000 status errors of wrk (32 connections)" in text
    assert "not measured: Portkey gateway" in text
    assert text.endswith("uvicorn 0.54.0, wrk 4.1.0.")


def test_an_answer_is_checked_for_status_lane_and_label() -> None:
    """Fast wrong answers are no result."""
    handled, passed = peers.ROWS["handled"], peers.ROWS["passed"]
    body = b'{"choices": [{"message": {"content": "card_arrival"}}]}'
    lane = {"x-tracer-lane": "surrogate"}
    assert loads.fault(servers.Answer(200, lane, body), handled) is None
    assert loads.fault(servers.Answer(429, lane, body), handled) == "status 429"
    assert loads.fault(servers.Answer(200, {"x-tracer-lane": "teacher"}, body), handled) == "answered by lane teacher"
    assert loads.fault(servers.Answer(200, lane, b"[]"), handled) == "no label in the answer"
    assert loads.fault(servers.Answer(200, {}, b'{"label": "x"}'), peers.ROWS["tracer-llm"]) is None
    events = {"x-tracer-lane": "teacher", "content-type": "text/event-stream"}
    assert loads.fault(servers.Answer(200, events, b"data: {}\n\ndata: [DONE]\n\n"), passed) is None
    assert loads.fault(servers.Answer(200, events, b"data: {}\n\n"), passed) == "no whole stream"


def test_a_load_is_kept_in_its_round_and_faults_are_added_up() -> None:
    """The most memory stands; what went wrong twice is counted twice."""
    found: dict[str, Any] = {"rounds": [], "faults": {}}
    for number, rss in ((0, 5), (0, 9), (1, 7)):
        figures = _load(1 if number else 32, p50_us=1)
        loads.keep(found, number, figures, {"rss": rss, "pss": rss}, Counter({"timeout errors of wrk": 2}))
    assert [(each["round"], list(each["loads"])) for each in found["rounds"]] == [(0, ["32"]), (1, ["1"])]
    assert found["memory"] == {"rss": 9, "pss": 9}
    assert found["faults"] == {
        "timeout errors of wrk (32 connections)": 4,
        "timeout errors of wrk (1 connection)": 2,
    }


def test_only_calls_by_another_lane_and_losses_are_faults() -> None:
    """The row's own calls are what was asked for."""
    before = {"calls by lane surrogate": 10.0, "calls by lane teacher": 3.0}
    after = {"calls by lane surrogate": 90.0, "calls by lane teacher": 5.0, "traces dropped": 1.0}
    found = loads.miscounted(before, after, peers.ROWS["handled"])
    assert found == {"calls by lane teacher": 2, "traces dropped": 1}


def test_servers_and_load_have_cores_of_their_own_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream behind shares the load's; several workers get what the load leaves, or share two."""
    monkeypatch.setattr("shutil.which", lambda _: "taskset")
    two, four = peers.choose_cores([0, 1], free=False), peers.choose_cores([0, 1, 2, 3], free=False)
    assert [two.of(name) for name in ("gateway", "upstream", "behind", "gateway-2")] == [[0], [0], [1], [0, 1]]
    assert four.of("gateway-2") == [0, 1, 2]
    assert peers.choose_cores([0], free=False) == peers.choose_cores([0, 1], free=True) == loads.Cores()


@pytest.mark.parametrize(
    "argv", [["--rows", "ours"], ["--connections", "0"], ["--rounds", "0"], ["--seconds", "x"], ["--resume"]]
)
def test_peers_refuses_what_it_does_not_know(argv: list[str]) -> None:
    """Unknown rows, numbers below one, and --resume without a file."""
    with pytest.raises(SystemExit) as raised:
        peers.parse(argv)
    assert raised.value.code == 2


def test_resume_keeps_rows_of_older_runs_and_forgets_runs_without_rows(tmp_path: Path) -> None:
    """A row that is measured again belongs to the new run."""
    result: dict[str, Any] = {"runs": [], "rows": {}, "absent": {}}
    first = peers.parse(["--rows", "empty,handled", "--peer-env", str(tmp_path)])
    peers.open_run(result, first.rows, {"portkey": "no node"}, first, loads.Cores())
    again = peers.parse(["--rows", "handled,portkey", "--peer-env", str(tmp_path)])
    peers.open_run(result, again.rows, {}, again, loads.Cores())
    assert {name: row["run"] for name, row in result["rows"].items()} == {"empty": 1, "handled": 2, "portkey": 2}
    assert [run["id"] for run in result["runs"]] == [1, 2]
    assert result["absent"] == {}
    rest = peers.parse(["--rows", "empty", "--peer-env", str(tmp_path)])
    peers.open_run(result, rest.rows, {}, rest, loads.Cores())
    assert [run["id"] for run in result["runs"]] == [2, 3]


# -- load --------------------------------------------------------------------------------------------------------------


def _kind(p99: float | None, errors: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"calls": 1_000, "put_off": 0, "errors": errors, "own_p99_ms": 0.5}
    if errors:
        found["first_error"] = "HTTP/1.1 502 Bad Gateway"
    return found if p99 is None else found | {"p50_ms": 1.0, "p99_ms": p99, "max_ms": 2 * p99}


def _mixed(alone: float | None, beside: float, errors: int = 0) -> dict[str, Any]:
    rows = {
        load_tables.ALONE: {"handled": _kind(alone)},
        load_tables.BESIDE: {"handled": _kind(beside), "streamed": _kind(50.0, errors)},
    }
    rounds = {condition: [row, row] for condition, row in rows.items()}
    busy = {load_tables.ALONE: {"gateway": 0.5, "caller": 0.1}}
    return {"rows": rows, "rounds": rounds, "refits": {load_tables.BESIDE: 3}, "busy": busy}


@pytest.mark.parametrize(
    "argv", [["--scenarios", "mixed,mixture"], ["--rounds", "0"], ["--rate", "0"], ["--calls", "99999"]]
)
def test_load_refuses_what_it_does_not_know(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown scenarios and numbers that mean nothing end in one line on stderr."""
    monkeypatch.setattr(load, "SET", tmp_path)
    monkeypatch.setattr(load, "MODEL", tmp_path)
    assert load.parse([]).scenarios == ["mixed", "transformer", "memory"]
    with pytest.raises(SystemExit) as raised:
        load.parse(argv)
    assert raised.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_load_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model where the cascade is to be measured, the data set always."""
    monkeypatch.setattr(load, "SET", tmp_path)
    monkeypatch.setattr(load, "MODEL", tmp_path / "missing")
    assert load.parse(["--scenarios", "memory"]).scenarios == ["memory"]
    with pytest.raises(SystemExit):
        load.parse([])
    assert "TRACER_MODELS" in capsys.readouterr().err
    monkeypatch.setattr(load, "SET", tmp_path / "missing")
    with pytest.raises(SystemExit):
        load.parse(["--scenarios", "memory"])
    assert "TRACER_DATA" in capsys.readouterr().err


def test_a_refit_may_double_the_p99_of_handled_calls() -> None:
    """More, an error of any call, or no answer at all misses the bar."""
    assert load_tables.mixed_missed(_mixed(3.0, 6.0)) == []
    assert load_tables.mixed_missed(_mixed(3.0, 6.3)) == [
        "handled p99 beside a refit is 2.1x that of alone, more than 2x"
    ]
    (missed,) = load_tables.mixed_missed(_mixed(3.0, 3.0, errors=2))
    assert missed == "2 errors of streamed calls beside a refit (the first: HTTP/1.1 502 Bad Gateway)"
    assert load_tables.mixed_missed(_mixed(None, 3.0)) == ["no handled call was answered"]
    table = load_tables.mixed_table(_mixed(3.0, 6.0))
    assert "| alone | handled | 1,000 | 1.00 | 3.00 | 3.0 - 3.0 - 3.0 | 0.50 | 0 |" in table
    assert "come to their end: 3 a refit. Cores busy, alone: gateway 0.50, caller 0.10." in table.replace(
        "came", "come"
    )


def test_a_cascade_has_fifteen_milliseconds() -> None:
    """At p99; what was deferred as busy is told, and no error."""
    found = {"row": _kind(15.0) | {"put_off": 7}, "needing": 0.3}
    assert load_tables.transformer_missed(found) == []
    assert "| 1,000 | 30% | 1.00 | 15.00 | 0.50 | 7 | 0 |" in load_tables.transformer_table(found)
    slow = {"row": _kind(15.2, errors=1), "needing": 0.3}
    assert len(load_tables.transformer_missed(slow)) == 2
    assert load_tables.transformer_missed({"row": _kind(None), "needing": 0.3}) == ["no call was handled"]
    assert load_tables.verdict([]) == "Met."
    assert load_tables.verdict(["a", "b"]) == "**Missed**: a; b."


def test_memory_stays_small_and_flat() -> None:
    """From the first 100,000 calls on; JSON makes texts of the numbers of calls."""
    points = {0: 90.0, 10_000: 140.0, **{100_000 * i: 147.0 + 0.3 * i for i in range(1, 11)}}
    memory = {calls: {"rss": mb, "own": mb / 2} for calls, mb in points.items()}
    found = {"memory_mb": memory, "errors": 0, "first_error": None, "seconds": 500.0}
    assert load_tables.memory_missed(json.loads(json.dumps(found))) == []
    table = load_tables.memory_table(found)
    assert "| 10,000 | 140.0 | 70.0 |" in table
    assert "2,000 calls a second, 0 errors." in table
    memory[1_000_000] = {"rss": 151.0, "own": 80.0}
    assert load_tables.memory_missed(found) == [
        "RSS is up to 151 MB, more than 150 MB",
        "RSS grows by 3.7 MB from 100,000 calls on, more than 3 MB",
    ]


def test_an_answer_is_read_to_its_end() -> None:
    """By its length, or by its last chunk; a stream must have said that it is done."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    assert [caller.is_whole(whole[:cut]) for cut in (10, len(whole) - 1, len(whole))] == [False, False, True]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    assert not caller.is_whole(head + b"5\r\nhello\r\n")
    broken, done = head + b"5\r\nhello\r\n0\r\n\r\n", head + b"c\r\ndata: [DONE]\r\n0\r\n\r\n"
    assert caller.is_whole(broken)
    assert (caller.fault(broken), caller.fault(done)) == ("a stream without its end", None)
    assert caller.fault(b"HTTP/1.1 429 Too Many Requests\r\n\r\n") == "HTTP/1.1 429 Too Many Requests"


def test_calls_are_made_when_they_are_due() -> None:
    """A server that takes long makes them late, and loses none; what another lane answers is told apart."""

    async def run() -> dict[str, caller.Seen]:
        port = processes.free_port()
        server = asyncio.create_task(caller.serve(port, 0.05, 2))
        await asyncio.sleep(0.1)
        lines = await caller.connect(port, 2)
        body = b'{"stream": true}'
        request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        # 40 a second over two connections that manage 10 each.
        seen = await caller.open_loop([caller.Load(caller.STREAMED, 40, lines, [request])], 0.5)
        assert await caller.closed_loop(lines, lambda _: b"GET / HTTP/1.1\r\n\r\n", 10) == []
        for line in lines:
            line.close()
        await asyncio.sleep(0.1)
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server
        return seen

    (seen,) = asyncio.run(run()).values()
    assert (seen.late, seen.errors) == ([], [])  # the upstream says nothing of lanes
    assert 10 <= seen.put_off <= 30


def _drift() -> dict[str, Any]:
    """300 calls: promoted at 100, changed at 200, every other answer wrong until it is demoted at 240, back at 280."""

    def call(number: int) -> dict[str, Any]:
        handled = 100 <= number < 240 or number >= 280
        return {
            "text": f"t{number % 150}",
            "ts": float(number),
            "handled": handled,
            "wrong": 200 <= number < 240 and number % 2,
        }

    def move(old: str, new: str, call: int, cause: str, **evidence: Any) -> dict[str, Any]:
        since = {"audits_since": max(0, call - 200) // 2, "seconds_since": call - 200.0}
        at = {"call": call, "seconds": float(call), "audits": call // 2}
        return {"version": "v-12345678", "old": old, "new": new, "cause": cause, "evidence": evidence} | at | since

    moves = [
        move("shadow", "live", 100, "proved on live calls", comparisons=90),
        move("live", "demoted", 240, "drift", audits=20),
        move("shadow", "live", 280, "proved on live calls", comparisons=30),
    ]
    marks = [
        {"call": 200, "seconds": 200.0, "audits": 100, "kind": "event", "told": "swapped"},
        {"call": 250, "seconds": 250.0, "audits": 120, "kind": "refit", "told": "tracer fit", "fit": FITTED},
        {"call": 280, "seconds": 280.0, "audits": 120, "kind": "recovered", "told": ""},
    ]
    known = {"promoted": 100, "event": 200, "end": 300, "idle_wrong": [True] * 80 + [False] * 20, "audits": 130}
    found = drift_tables.figures([call(number) for number in range(300)], moves, marks, known)
    return found | {"title": "swapped", "note": "a note"}


FITTED = {"refused": False, "coverage": 0.9, "n_traces": 50}


def test_drift_counts_what_a_change_cost_until_it_was_acted_on() -> None:
    """Wrong answers are those the policy gave; what would have been is counted over the same calls."""
    found = _drift()
    assert (found["acted"], found["acted_audits"], found["acted_seconds"]) == (40, 20, 40.0)
    assert (found["wrong_until_acted"], found["wrong_until_recovered"]) == (20, 20)
    assert (found["idle_until_acted"], found["idle_until_recovered"]) == (40, 80)
    assert found["before"] == {"calls": 100, "handled": 100, "coverage": 1.0, "agreement": 1.0}
    assert found["after"]["calls"] == 20
    assert found["distinct_texts"] == 150
    assert found["curve"][-1][0] == 300


def test_drift_tells_what_happened_in_order() -> None:
    """A line for each move with its evidence, what was done by hand, and the note."""
    lines = drift_tables.timeline(_drift()).splitlines()
    assert [line.split("  ")[-1] for line in lines[1:]] == [
        "12345678 shadow -> live: proved on live calls (comparisons 90)",
        "=== swapped",
        "12345678 live -> demoted: drift (audits 20)",
        "$ tracer fit: 50 traces, coverage 0.900 certified",
        "--- back",
        "12345678 shadow -> live: proved on live calls (comparisons 30)",
        "(a note)",
    ]


def test_drift_has_a_row_a_scenario_and_says_that_the_cap_was_raised(tmp_path: Path) -> None:
    """The picture takes the same figures."""
    found = {"swap": _drift()}
    conditions = {"calls_a_second": 800, "audit": {"daily_calls": 1_000_000}, "seconds": 60.0}
    text = drift_tables.table({"stamp": STAMP, "scenarios": found} | conditions)
    assert "| swapped | 100 (90) | 40 / 20 / 40 | demoted: drift | 20 | 20 | 80 | a refit, 80 calls |" in text
    assert "raised to 1,000,000" in text
    drift_plot.draw(found, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_drift_repeats_a_text_in_other_capitals() -> None:
    """The policy sees none, so only what tells a call from its retry has changed."""
    draw = random.Random(0)
    made = {drift_scenarios.in_other_capitals("where is my card", draw) for _ in range(50)}
    assert len(made) > 40
    assert {text.lower() for text in made} == {"where is my card"}
