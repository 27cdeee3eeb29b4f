"""The day-one read: what a trace file lets a fit expect, at which price, and what stands in the way."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.errors import FitError
from policies.evaluation import evaluate
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.scan import SCAN_TARGETS, Estimate, Price, Scan, TargetEstimate, scan
from policies.scan_cli import to_json
from policies.settings import FitConfig
from policies.traces import TraceFile
from policies.types import AnswerKind, Reason, Trace
from tests.data import dataset
from tests.traces_maker import LABELS, make_traces, write

_PROMISED = {
    "": "refused reason n_traces n_skipped n_duplicate_ids n_different_inputs n_too_long first_ts last_ts labels "
    "teacher price_per_1000_calls calls_per_day seed confidence seconds notes n_sample n_judged n_effective agreement "
    "n_unreadable targets focus disagreements confusions hard_labels outside_guard near_duplicates",
    "labels": "n seen_once rare rare_share majority majority_share",
    "teacher": "contradicted_inputs agrees_with_itself ceiling",
    "targets": "target possible coverage agreement reason traces_needed handled_per_day saved_per_1000_calls "
    "saved_per_day saved_per_month",
    "confusions": "labels count",
    "hard_labels": "label traces agreement handled_share",
    "near_duplicates": "share agreement_with agreement_without",
}


def _tracer(*arguments: str | Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer", "scan", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done


def _scan(traces: list[Trace], **settings: Any) -> Scan:
    return scan(TraceFile(traces), **settings)


def _estimate(result: Scan) -> Estimate:
    assert result.estimate is not None, result.reason
    return result.estimate


def _at(result: Scan, target: float) -> TargetEstimate:
    return next(row for row in _estimate(result).targets if row.target == target)


@pytest.fixture(scope="module")
def made() -> Scan:
    """A scan of 2,000 made traces, with a price and a volume."""
    return _scan(make_traces(2_000), price=Price(0.15, 20_000))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 made traces in a file."""
    return write(tmp_path_factory.mktemp("scan") / "traces.jsonl", make_traces(600))


def test_the_estimate_is_near_what_a_fit_certifies(made: Scan, tmp_path: Path) -> None:
    """On the same traces, at each target that a fit is asked for."""
    for target in (0.80, 0.90, 0.95):
        config = FitConfig(target_teacher_agreement=target, frontier_targets=())
        certificate = fit_policy(make_traces(2_000), tmp_path / f"{target}", config).manifest.certificate
        assert _at(made, target).coverage == pytest.approx(certificate.coverage, abs=0.06)
        assert _at(made, target).possible != certificate.refused


def test_higher_targets_cover_less(made: Scan) -> None:
    """One row for each target, coverage falling, and what was seen is at least what is asked."""
    rows = _estimate(made).targets
    assert tuple(row.target for row in rows) == SCAN_TARGETS
    assert all(high.coverage <= low.coverage for low, high in pairwise(rows))
    assert all(row.agreement is not None and row.agreement >= row.target for row in rows if row.possible)


def test_savings_follow_from_price_and_volume(made: Scan) -> None:
    """US dollars: the share of calls answered, times what they would have cost."""
    for row in _estimate(made).targets:
        assert row.handled_per_day == pytest.approx(row.coverage * 20_000)
        assert row.saved_per_1000_calls == pytest.approx(row.coverage * 0.15)
        assert row.saved_per_day == pytest.approx(row.coverage * 3.0)
        assert row.saved_per_month == pytest.approx(row.coverage * 90.0)


def test_without_a_volume_there_is_no_daily_sum() -> None:
    """A price alone says what 1,000 calls save, a volume alone how many are answered, neither nothing."""
    traces = make_traces(300)
    alone = _at(_scan(traces, price=Price(per_1000_calls=2.0)), 0.80)
    assert alone.saved_per_1000_calls == pytest.approx(2.0 * alone.coverage)
    assert alone.saved_per_day is alone.saved_per_month is alone.handled_per_day is None
    volume = _at(_scan(traces, price=Price(calls_per_day=50)), 0.80)
    assert volume.handled_per_day == pytest.approx(50 * volume.coverage)
    assert volume.saved_per_1000_calls is volume.saved_per_day is None


def test_what_cannot_be_proved_says_how_many_traces_might_do() -> None:
    """300 traces prove 0.80 but never 0.99."""
    row = _at(_scan(make_traces(300)), 0.99)
    assert not row.possible
    assert row.coverage == 0
    assert row.agreement is None
    assert "cannot prove" in (row.reason or "")
    few = _at(_scan(make_traces(300, blur=0.0)), 0.99)
    assert not few.possible
    assert few.traces_needed is not None
    assert few.traces_needed >= 50
    assert "more different inputs" in (few.reason or "")


def test_under_200_traces_nothing_is_promised() -> None:
    """What the file holds is said, coverage is not; 200 traces are enough."""
    refused = _scan(make_traces(199))
    assert refused.estimate is None
    assert "199" in (refused.reason or "")
    assert refused.contents.traces == refused.contents.different_inputs == 199
    assert _scan(make_traces(200)).estimate is not None


def test_repeats_do_not_make_enough_traces() -> None:
    """150 different inputs, each four times, are 150."""
    refused = _scan([replace(trace, id=None) for trace in make_traces(150)] * 4)
    assert refused.estimate is None
    assert "150 different inputs" in (refused.reason or "")
    assert refused.contents.traces == 600


def test_calls_that_a_policy_deferred_are_no_fair_sample() -> None:
    """As in a fit: they are hard ones by selection."""
    hard = [replace(trace, reason=Reason.UNCERTAIN) for trace in make_traces(400)]
    refused = _scan([*hard[100:], *make_traces(150, seed=1)])
    assert refused.estimate is None
    assert "150 different inputs" in (refused.reason or "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _, trace: replace(trace, teacher="same"), "same label"),
        (lambda i, trace: replace(trace, input=" Hello" if i % 2 else "hello"), "inputs are the same"),
        (lambda i, trace: replace(trace, teacher="Refund" if i % 2 else "refund"), "same label"),
        (lambda _, trace: replace(trace, kind=AnswerKind.OTHER), "no answer has a form"),
        (lambda i, trace: replace(trace, teacher=f"order {i // 2}"), "like a decision among fixed labels"),
        (lambda _, trace: replace(trace, input="x" * 20_000 + trace.input), "that can be read"),
    ],
    ids=["one label", "one input", "case", "no label", "many labels", "unreadable"],
)
def test_hopeless_files_are_refused_with_the_reason(change: Any, says: str) -> None:
    """A refusal in words, no estimate, and no exception."""
    refused = _scan([change(i, trace) for i, trace in enumerate(make_traces(400))])
    assert refused.estimate is None
    assert says in (refused.reason or "")
    assert to_json(refused)["refused"] is True


def test_ten_thousand_labels_are_no_decision() -> None:
    """Whether seen once each or often."""
    traces = [Trace(f"question number {i}", f"answer {i % 10_000}") for i in range(30_000)]
    assert "10000 different labels" in (_scan(traces).reason or "")


def test_labels_taken_for_each_other_are_named_with_an_example() -> None:
    """Two labels that split one topic at random lead the list."""
    generator = np.random.default_rng(0)
    split = [
        replace(trace, teacher=f"refund_{generator.integers(2)}") if trace.teacher == "refund" else trace
        for trace in make_traces(1_500, blur=0.0)
    ]
    estimate = _estimate(_scan(split))
    first = estimate.confusions[0]
    assert first.labels == ("refund_0", "refund_1")
    assert first.count > 0.7 * estimate.disagreements
    assert first.said in first.labels
    assert first.example in {trace.input for trace in split if trace.teacher == first.said}
    assert {row.label for row in estimate.hard_labels[:2]} == {"refund_0", "refund_1"}
    assert all(row.agreement < 0.7 for row in estimate.hard_labels[:2])


def test_rare_labels_and_the_most_frequent_one_are_counted() -> None:
    """Over the whole file, in counts and shares."""
    rare = [Trace("a thing nobody else has said", "once")] + [Trace(f"odd thing {i}", "few") for i in range(5)]
    found = to_json(_scan([*make_traces(294), *rare]))["labels"]
    assert (found["n"], found["seen_once"], found["rare"]) == (len(LABELS) + 2, 1, 2)
    assert found["rare_share"] == pytest.approx(6 / 300)
    assert found["majority"] in LABELS


def test_a_teacher_that_contradicts_itself_has_a_ceiling() -> None:
    """Repeated inputs with two labels are counted, and bound what any copy can reach."""
    traces = [replace(trace, id=None) for trace in make_traces(400)]
    other = [replace(trace, teacher="balance" if trace.teacher != "balance" else "loan") for trace in traces[:40]]
    result = _scan([*traces, *traces[40:100], *other])
    assert result.contents.contradicted == 40
    found = to_json(result)["teacher"]
    assert found["agrees_with_itself"] == pytest.approx(0.6)
    assert 0.5 < found["ceiling"] < 0.8
    assert to_json(_scan(traces))["teacher"] == {"contradicted_inputs": 0, "agrees_with_itself": None, "ceiling": None}


def test_what_is_no_label_contradicts_every_other_answer() -> None:
    """One input with ten different proses is one that the teacher contradicts itself on."""
    prose = [Trace("explain my fees", f"well {i}", kind=AnswerKind.OTHER) for i in range(10)]
    assert _scan([*make_traces(300), *prose]).contents.contradicted == 1


def test_the_forms_are_shown_and_spellings_kept_apart_on_request(tmp_path: Path) -> None:
    """As `fit` does: what is merged, the template, and --no-merge-labels."""
    traces = [
        replace(trace, input=f"Message to sort: {trace.input}", teacher=f"{trace.teacher}{'.' * (i % 2)}")
        for i, trace in enumerate(make_traces(300))
    ]
    file = write(tmp_path / "traces.jsonl", traces)
    page = _tracer(file).stdout
    assert "300 traces, 8 labels" in page
    assert "also stands for" in page
    assert "only the part after 'Message to sort: ' is read" in page
    found = json.loads(_tracer(file, "--no-merge-labels", "--json").stdout)
    assert found["labels"]["n"] == 16
    assert not any("also stands for" in note for note in found["notes"])


def test_inputs_too_long_to_read_are_counted() -> None:
    """They are left unread, and the others are scanned."""
    long = [Trace("word " * 5_000 + str(i), "loan") for i in range(3)]
    result = _scan([*make_traces(300), *long])
    assert result.contents.too_long == 3
    assert _estimate(result).unreadable == 3


def test_calls_too_long_to_read_lower_the_coverage() -> None:
    """They are deferred unread: no more than the readable share of calls can be answered, or saved."""
    traces = make_traces(1_200, blur=0.0)
    long = [replace(trace, input=f"{'x' * 20_000}{trace.input}") for trace in traces[:400]]
    row = _at(_scan([*long, *traces[400:]], price=Price(3.0)), 0.90)
    assert row.coverage == pytest.approx(0.99 * 2 / 3, abs=0.05)
    assert row.saved_per_1000_calls == pytest.approx(3.0 * row.coverage)


def test_a_large_file_is_sampled_by_the_seed() -> None:
    """The same seed says the same; the sample is smaller than the file, and counts are of the whole file."""
    traces = make_traces(17_000)
    first, again, other = _scan(traces), _scan(traces), _scan(traces, seed=1)
    assert _estimate(first).sample < 17_000 == first.contents.traces
    assert _estimate(first).targets == _estimate(again).targets
    assert _estimate(first).targets != _estimate(other).targets


def test_many_labels_and_long_texts_are_judged_on_fewer_folds() -> None:
    """The same work goes into learning from all of them; what is counted is what was held out."""
    traces = [
        Trace(f"{trace.input} {trace.teacher}{i % 500} {'and so on ' * 10}{i}", f"{trace.teacher} {i % 500}")
        for i, trace in enumerate(make_traces(8_000, blur=0.0))
    ]
    estimate = _estimate(_scan(traces))
    assert 200 < estimate.judged < estimate.sample
    assert sum(row.traces for row in estimate.hard_labels) <= estimate.judged


def test_what_a_sample_cannot_prove_the_whole_file_may() -> None:
    """More traces are asked for only beyond those that the file holds already."""
    traces = [
        replace(trace, input=f"{trace.input} {'padding ' * 1_500}{i % 10}")  # no template: the ends differ
        for i, trace in enumerate(make_traces(4_000, noise=0.006, blur=0.0))
    ]
    result = _scan(traces)
    assert _estimate(result).sample < 4_000
    row = _at(result, 0.99)
    assert not row.possible
    assert row.traces_needed == 0
    assert "the whole file might" in (row.reason or "")


def test_json_has_the_documented_keys_and_no_text_of_inputs(made: Scan) -> None:
    """Refused or not, the keys are the same."""
    found = to_json(made)
    assert set(found) == set(_PROMISED[""].split()) == set(to_json(_scan(make_traces(20))))
    for part in ("labels", "teacher", "near_duplicates"):
        assert set(found[part]) == set(_PROMISED[part].split())
    for part in ("targets", "confusions", "hard_labels"):
        assert all(set(row) == set(_PROMISED[part].split()) for row in found[part])
    text = json.dumps(found)
    assert not [row.example for row in _estimate(made).confusions if row.example in text]


@pytest.mark.parametrize("price", [(-1.0, None), (None, -5.0), (float("nan"), None), (None, float("inf"))])
def test_prices_and_volumes_must_make_sense(price: tuple[float | None, float | None]) -> None:
    """FitError names which is wrong."""
    with pytest.raises(FitError, match=r"price|calls per day"):
        Price(*price)


def test_the_command_prints_one_json_object(file: Path) -> None:
    """And nothing else on stdout."""
    found = json.loads(_tracer(file, "--price", "0.15", "--calls-per-day", "1000", "--json").stdout)
    assert found["refused"] is False
    assert found["n_traces"] == found["n_sample"] == 600
    assert (found["price_per_1000_calls"], found["calls_per_day"]) == (0.15, 1000)


def test_the_page_says_coverage_money_reasons_and_that_it_is_an_estimate(file: Path) -> None:
    """Readable, and plain about what it does not promise."""
    page = _tracer(file, "--price", "0.15", "--calls-per-day", "20000").stdout
    for words in ("600 traces, 8 labels", "coverage", "saved a month", "$", "Why not more", "estimate", "tracer fit"):
        assert words in page
    assert max(map(len, page.splitlines())) <= 160


def test_a_refusal_is_exit_code_zero_without_coverage(tmp_path: Path) -> None:
    """Under 200 traces the page says what it sees, and why there is no more."""
    page = _tracer(write(tmp_path / "t.jsonl", make_traces(120))).stdout
    assert "120 traces, 8 labels" in page
    assert "at least 200" in page
    assert "coverage" not in page


def test_times_are_shown_as_a_range(tmp_path: Path) -> None:
    """Where every trace has one; from them follows how many traces a day."""
    traces = [replace(trace, ts=1_767_225_600.0 + 864 * i) for i, trace in enumerate(make_traces(201))]
    page = _tracer(write(tmp_path / "t.jsonl", traces)).stdout
    assert "from 2026-01-01 00:00 to 2026-01-03 00:00, about 100 traces a day" in page
    odd = [replace(trace, ts=1e300) for trace in traces[:30]]
    assert "1e+300" in _tracer(write(tmp_path / "t.jsonl", odd)).stdout


def test_control_characters_and_markup_of_inputs_stay_harmless(tmp_path: Path) -> None:
    """What users wrote is shown as text: no escape sequence reaches the terminal, brackets are no markup."""
    traces = [
        replace(trace, input=f"\x1b[31m[red]{trace.input}\x07", teacher=f"[{i % 2}]\x1b[2J")
        for i, trace in enumerate(make_traces(300))
    ]
    page = _tracer(write(tmp_path / "t.jsonl", traces)).stdout
    assert "[red]" in page
    assert "[0]" in page
    assert "\x1b" not in page
    assert "\x07" not in page


def test_bad_lines_stop_the_scan_or_are_counted(tmp_path: Path) -> None:
    """By default `file:line: what is wrong`; with --skip-bad the rest is scanned."""
    path = write(tmp_path / "t.jsonl", make_traces(250))
    path.write_bytes(path.read_bytes() + b'{"input": "x"}\n')
    assert f"{path}:251:" in _tracer(path, fails=True).stderr
    done = _tracer(path, "--skip-bad", "--json")
    assert "1 bad lines skipped" in done.stderr
    assert json.loads(done.stdout)["n_skipped"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.jsonl"], "missing.jsonl"),
        (["{traces}", "--price", "-1"], "price"),
        (["{traces}", "--calls-per-day", "nan"], "calls per day"),
        (["{traces}", "--seed", "-1"], "seed"),
        (["{traces}", "--embeddings", "x.npy"], "tracer fit"),
    ],
)
def test_mistakes_are_one_line_that_names_them(file: Path, arguments: list[str], says: str) -> None:
    """Exit code other than 0, and no traceback."""
    done = _tracer(*[argument.format(traces=file) for argument in arguments], fails=True)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_embeddings_beside_the_file_are_mentioned(tmp_path: Path) -> None:
    """A fit would learn from them, a scan does not."""
    path = write(tmp_path / "t.jsonl", make_traces(200))
    np.save(tmp_path / "t.npy", np.zeros((200, 4), np.float32))
    assert "Embeddings lie beside the file" in _tracer(path).stdout


def test_on_banking77_the_estimate_is_near_what_live_traffic_gets(tmp_path: Path) -> None:
    """The policy fitted on the same traces answers about that share of calls nobody had seen."""
    traces, traffic = dataset("banking77")
    estimated = _at(_scan(traces[:5_000]), 0.95)
    fit_policy(traces[:5_000], tmp_path, FitConfig(target_teacher_agreement=0.95, frontier_targets=()))
    live = evaluate(Policy.load(tmp_path), traffic[:1_000], None)
    assert estimated.coverage == pytest.approx(live.coverage, abs=0.06)
    assert estimated.agreement == pytest.approx(live.teacher_agreement, abs=0.03)
