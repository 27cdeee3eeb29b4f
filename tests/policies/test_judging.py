"""The certificate says how it was measured, protects what it is asked to, and warns where others would disagree."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from policies.artifact import Manifest
from policies.errors import FitError
from policies.evaluation import evaluate
from policies.fitting import fit_policy
from policies.measuring import Decided, early_threshold, lifted
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason, Trace
from tests.traces_maker import LABELS, make_traces

_POLITE = ("please", "thanks", "now", "ok", "hi", "sir")


def _report(folder: Path, manifest: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((folder / manifest.files["report"].path).read_bytes())
    return found


def _repeating(n: int, seed: int = 0) -> list[Trace]:
    """Traces whose words come in a few fixed phrases, each said in several nearly equal ways."""
    generator = random.Random(seed)
    phrases = make_traces(n // 10, seed=seed, noise=0.12, blur=0.4)
    made = [
        replace(phrase, input=f"{phrase.input} {generator.choice(_POLITE)} {i}", id=None)
        for phrase in phrases
        for i in range(10)
    ]
    generator.shuffle(made)
    return made


def test_all_three_measurements_stand_in_the_certificate(tmp_path: Path) -> None:
    """Each with its own verdict and with what the served threshold gives on it; the ruling one is named."""
    certificate = fit_policy(make_traces(1_000), tmp_path, FitConfig(0.85)).manifest.certificate
    rows = {row["name"]: row for row in certificate.measurements}
    assert set(rows) == {"iid", "grouped", "newest"}
    assert certificate.ruling == certificate.assume == "iid"
    assert rows["iid"]["coverage"] == certificate.coverage
    assert rows["iid"]["at_served_threshold"]["coverage"] == pytest.approx(certificate.coverage)
    assert rows["iid"]["at_served_threshold"]["teacher_agreement"] == pytest.approx(certificate.teacher_agreement)
    assert 150 <= rows["newest"]["n"] <= 200
    assert certificate.n_effective is not None
    assert 0 < certificate.n_effective <= 1_000


def test_traces_that_repeat_themselves_bring_a_warning_and_grouped_is_stricter(tmp_path: Path) -> None:
    """Where random folds see every phrase before it is asked, keeping near-duplicates apart certifies less."""
    traces = _repeating(2_000)
    iid = fit_policy(traces, tmp_path / "iid", FitConfig(0.85)).manifest.certificate
    grouped = fit_policy(traces, tmp_path / "grouped", FitConfig(0.85, assume="grouped")).manifest.certificate
    assert any(note.startswith("warning: with near-duplicates kept together") for note in iid.notes)
    assert grouped.ruling == "grouped"
    assert grouped.coverage < iid.coverage - 0.05
    strictest = fit_policy(traces, tmp_path / "all", FitConfig(0.85, assume="strictest")).manifest.certificate
    assert strictest.ruling == "grouped"
    assert strictest.coverage <= grouped.coverage


def test_the_newest_traces_rule_where_asked(tmp_path: Path) -> None:
    """A task that changes at its end is certified by random folds and refused on the newest traces."""
    turned = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    old, new = make_traces(1_800, seed=2), make_traces(200, seed=3)
    traces = [*old, *(replace(trace, teacher=turned[trace.teacher]) for trace in new)]
    stamped = [replace(trace, ts=float(i)) for i, trace in enumerate(traces)]
    random.Random(0).shuffle(stamped)
    newest = fit_policy(stamped, tmp_path / "newest", FitConfig(0.80, assume="newest")).manifest.certificate
    iid = fit_policy(stamped, tmp_path / "iid", FitConfig(0.80)).manifest.certificate
    assert newest.refused
    assert not iid.refused
    assert any("newest traces held out" in note for note in iid.notes)


def test_a_protected_label_is_answered_only_if_certified_on_its_own(tmp_path: Path) -> None:
    """A label whose answers are often wrong is never said while protected; the others go on, and a note says so."""
    generator = random.Random(5)
    traces = [
        replace(trace, teacher="complaint") if trace.teacher == "loan" and generator.random() < 0.35 else trace
        for trace in make_traces(3_000, blur=0.05)
    ]
    config = FitConfig(0.90, protect=("complaint", "refund"))
    plain = fit_policy(traces, tmp_path / "plain", FitConfig(0.90)).manifest
    manifest = fit_policy(traces, tmp_path / "protected", config).manifest
    policy = Policy.load(tmp_path / "protected")
    answers = {policy.decide(trace.input).label for trace in make_traces(1_500, seed=77, blur=0.05)}
    assert not plain.certificate.refused
    assert manifest.protected["refund"] is not None
    assert "refund" in answers
    assert (manifest.protected["complaint"] is None) == ("complaint" not in answers)
    with pytest.raises(FitError, match="no trace has the label 'refunds'"):
        fit_policy(traces, tmp_path / "mistyped", FitConfig(0.90, protect=("refunds",)))
    assert "protected label" in manifest.certificate.statement
    rows = {row["label"]: row for row in _report(tmp_path / "protected", manifest)["labels"]}
    assert rows["refund"]["protected"]
    assert rows["refund"]["agreement_lower"] >= 0.85


def test_a_label_with_too_few_traces_is_never_answered_while_protected(tmp_path: Path) -> None:
    """Twenty traces cannot certify a label alone, whatever the pool's certificate says."""
    rare = [t for t in make_traces(2_000, seed=4) if t.teacher == "loan"][:20]
    traces = [t for t in make_traces(2_000) if t.teacher != "loan"] + rare
    manifest = fit_policy(traces, tmp_path, FitConfig(0.90, protect=("loan",))).manifest
    policy = Policy.load(tmp_path)
    assert manifest.protected == {"loan": None}
    assert any("'loan' could not be certified on its own" in note for note in manifest.certificate.notes)
    decisions = [policy.decide(trace.input) for trace in make_traces(500, seed=9)]
    assert "loan" not in {decision.label for decision in decisions}
    assert sum(decision.handled for decision in decisions) > 200


def test_audited_traces_bring_back_what_a_live_policy_left_out(tmp_path: Path) -> None:
    """Deferred calls alone would be too hard a sample; with weighted audits of the handled ones they count."""
    fair = [replace(trace, ts=float(i)) for i, trace in enumerate(make_traces(800))]
    later = make_traces(1_500, seed=1)
    deferred = [replace(t, ts=1e4 + i, reason=Reason.UNCERTAIN) for i, t in enumerate(later[:300])]
    audited = [replace(t, ts=1e4 + i, weight=10.0) for i, t in enumerate(later[300:420])]
    without = fit_policy([*fair, *deferred], tmp_path / "a", FitConfig(0.8)).manifest.certificate
    found = fit_policy([*fair, *deferred, *audited], tmp_path / "b", FitConfig(0.8)).manifest.certificate
    assert without.n_judged == 800
    assert found.n_judged == 1_220
    assert any("weights" in note for note in found.notes)
    assert not found.refused


def test_a_teacher_below_the_target_is_named_as_the_ceiling(tmp_path: Path) -> None:
    """Repeated inputs with different answers say how far any copy can get."""
    generator = random.Random(1)
    base = make_traces(400)
    noisy = [
        replace(trace, id=None, teacher=generator.choice(LABELS) if generator.random() < 0.15 else trace.teacher)
        for trace in base * 3
    ]
    notes = fit_policy(noisy, tmp_path, FitConfig(0.95)).manifest.certificate.notes
    assert any("no copy can agree" in note for note in notes)


def test_a_cascade_answers_early_only_above_the_lifted_threshold() -> None:
    """The early stage's label stands where its lifted score passes, whoever scores higher."""
    decided = Decided(
        scores=np.array([0.9, 0.9, 0.4]),
        early=np.array([0.7, -np.inf, 0.4]),
        early_label=np.array([0, 0, 0]),
        last_label=np.array([1, 1, 1]),
    )
    assert decided.labels(0.8).tolist() == [1, 1, 1]
    assert decided.labels(0.6).tolist() == [0, 1, 1]
    assert decided.entry_labels.tolist() == [1, 1, 0]
    assert lifted(np.array([early_threshold(0.7)])) == pytest.approx([0.7])


def test_every_target_of_the_frontier_holds_beside_the_others(tmp_path: Path) -> None:
    """The frontier splits the error probability, so its row at the target covers no more than the certificate."""
    manifest = fit_policy(make_traces(1_500), tmp_path, FitConfig(0.90)).manifest
    frontier = orjson.loads((tmp_path / manifest.files["frontier"].path).read_bytes())
    row = next(row for row in frontier if row["target"] == 0.90)
    assert 0 < row["coverage"] <= manifest.certificate.coverage
    assert [row["target"] for row in frontier] == sorted(row["target"] for row in frontier)
    result = evaluate(Policy.load(tmp_path), make_traces(2_000, seed=50))
    assert result.teacher_agreement is not None
    assert result.teacher_agreement >= 0.90


def test_choosing_among_options_costs_error_probability(tmp_path: Path) -> None:
    """Each of several candidates and feature specs is judged more strictly than the same one alone."""
    traces = make_traces(900)
    alone = fit_policy(traces, tmp_path / "alone", FitConfig(0.90)).manifest.certificate
    two = FitConfig(0.90, surrogates=("joint", "mlp"))
    chosen = fit_policy(traces, tmp_path / "chosen", two).manifest
    trials = {row["name"]: row["agreement"] for row in _report(tmp_path / "chosen", chosen)["candidates"]}
    assert trials["joint"] >= trials["mlp"]
    assert chosen.certificate.coverage < alone.coverage
    auto = fit_policy(traces, tmp_path / "auto", FitConfig(0.90, features="auto")).manifest
    options = {row["features"]: row["coverage"] for row in _report(tmp_path / "auto", auto)["options"]}
    assert options["lexical,static"] < alone.coverage
    # Of three measurements each is tested at a third of the error, and so the strictest covers less than the least.
    strictest = fit_policy(traces, tmp_path / "strictest", FitConfig(0.90, assume="strictest")).manifest.certificate
    assert strictest.coverage < min(row["coverage"] for row in alone.measurements)


def test_nearly_verbatim_copies_are_not_evidence_where_grouped_rules(tmp_path: Path) -> None:
    """Every trace five times with a number behind it: random folds are fooled, kept apart they prove no more."""
    traces = make_traces(240, noise=0.05)
    copies = [replace(t, input=f"{t.input} {i}", id=None) for t in traces for i in range(5)]
    once = fit_policy(traces, tmp_path / "once", FitConfig(0.85)).manifest.certificate
    fooled = fit_policy(copies, tmp_path / "iid", FitConfig(0.85)).manifest.certificate
    grouped = fit_policy(copies, tmp_path / "grouped", FitConfig(0.85, assume="grouped")).manifest.certificate
    assert fooled.coverage > grouped.coverage
    assert grouped.coverage <= once.coverage + 0.1


def test_traces_all_alike_cannot_be_measured_apart(tmp_path: Path) -> None:
    """One template with a number in it: iid has its verdict, grouped is refused in words, and nothing warns."""
    generator = random.Random(0)
    text = "please send me the balance of account number {}"
    traces = [Trace(text.format(i), generator.choice(LABELS[:2])) for i in range(120)]
    for assume in ("iid", "grouped", "strictest"):
        certificate = fit_policy(traces, tmp_path / assume, FitConfig(0.8, assume=assume)).manifest.certificate
        assert certificate.refused
        assert certificate.reason


def test_an_empty_newest_fifth_is_a_refusal(tmp_path: Path) -> None:
    """Where all of the newest traces repeat older ones there is nothing new to measure on."""
    traces = [replace(trace, id=None) for trace in make_traces(400)]
    certificate = fit_policy([*traces, *traces[:100]], tmp_path, FitConfig(0.8, assume="newest")).manifest.certificate
    assert certificate.refused
    assert "0 different inputs" in (certificate.reason or "")


def test_only_rows_of_the_served_measurement_can_be_asked_for(tmp_path: Path) -> None:
    """Where the strictest rules, a threshold of another measurement is on another scale and stays in the report."""
    config = FitConfig(0.80, assume="strictest")
    manifest = fit_policy(make_traces(1_500, blur=0.15), tmp_path, config).manifest
    frontier = orjson.loads((tmp_path / manifest.files["frontier"].path).read_bytes())
    certified = [row for row in frontier if row["certified"]]
    served = [row for row in certified if row["ruling"] == manifest.certificate.ruling]
    assert [row.target for row in manifest.frontier] == [row["target"] for row in served]
    assert [row.thresholds for row in manifest.frontier] == [[row["threshold"]] for row in served]
    assert served
