"""What goes with a certificate in plain words: what was left out, what repeats, and where another view says less."""

from typing import Any

import numpy as np

from policies.diagnostics import contradicted_inputs, teacher_ceiling
from policies.gate import Thresholds
from policies.learning import Learned
from policies.settings import FitConfig

_MANNERS = {"iid": "random folds", "grouped": "near-duplicates kept together", "newest": "the newest traces held out"}
_EXPECT = {
    "iid": "expect that where live calls are drawn like the traces",
    "grouped": "expect that where live calls repeat the traces less",
    "newest": "expect that where live calls go on changing as the traces did",
}

_SHOWN = 5


def notes_of(
    learned: Learned, config: FitConfig, thresholds: Thresholds, measurements: list[dict[str, Any]] | None
) -> list[str]:
    """What goes with a certificate, a line each. `measurements` are the certificate's; None where it is refused."""
    notes = []
    rare = sum(1 for count in learned.teacher_counts.values() if count == 1)
    if rare:
        learned_of = "never said" if learned.task is not None and learned.task.parts is not None else "not learned"
        notes.append(f"{rare} labels were seen once: they are {learned_of}, and their traces count as disagreement")
    # Those off the template have a note of their own.
    unreadable = int((~learned.readable).sum()) - learned.off_template if learned.problem is None else 0
    if unreadable:
        notes.append(f"{unreadable} traces are too long to be read whole, or empty: such calls are deferred")
    apart = int((~learned.judged).sum())
    if apart:
        notes.append(
            f"{apart} traces are learned from but do not count for the certificate: a policy in service deferred them, "
            "so they are not drawn as live calls are"
        )
    if learned.problem is None and len(np.unique(learned.weights[learned.judged])) > 1:
        notes.append("traces carry weights: agreement is weighted, and tested by a bound that is valid for weights")
    notes += _repeats(learned, config)
    notes += _protected(learned, config, thresholds)
    if measurements is not None:
        notes += _other_measurements(config, measurements)
    return notes


def _repeats(learned: Learned, config: FitConfig) -> list[str]:
    first = np.unique(learned.groups, return_index=True)[1]
    repeats = len(learned.groups) - len(first)
    if learned.problem is not None or not repeats:
        return []
    # What was not read has no label here, whatever the teacher said.
    contradicted = contradicted_inputs(learned.groups[learned.readable], learned.truth[learned.readable])
    notes = [f"{repeats} traces repeat an earlier input: the certificate holds for the different inputs alone, too"]
    if contradicted:
        notes.append(f"the teacher contradicts itself: {contradicted} inputs were given more than one label")
    ceiling = teacher_ceiling(learned.groups, learned.truth)
    if ceiling is not None and ceiling.highest < config.target_teacher_agreement:
        notes.append(
            f"the teacher answers a repeated input the same way {ceiling.agreeing:.1%} of the time ({ceiling.pairs} "
            f"inputs): on such inputs no copy can agree with it much more often than {ceiling.highest:.3f}"
        )
    return notes


def _protected(learned: Learned, config: FitConfig, thresholds: Thresholds) -> list[str]:
    once = [label for label in config.protect if label not in learned.labels]
    notes = [
        f"protected label {label!r} was seen once: it is not learned, and never answered" for label in once[:_SHOWN]
    ]
    if len(once) > _SHOWN:
        notes.append(f"so were {len(once) - _SHOWN} more protected labels")
    for label in config.protect:
        if label not in learned.labels:
            continue
        choice = thresholds.protected.get(learned.labels.index(label))
        if choice is not None and choice.threshold is None:
            notes.append(f"protected label {label!r} could not be certified on its own: it is never answered")
    return notes


def _other_measurements(config: FitConfig, measurements: list[dict[str, Any]]) -> list[str]:
    """A plain word where traces that are less alike say less than the ruling measurement does."""
    target, notes = config.target_teacher_agreement, []
    for row in measurements:
        seen = row["at_served_threshold"]
        if seen is None or seen["teacher_agreement"] is None or seen["teacher_agreement"] >= target:
            continue
        alone = f"certifies coverage {row['coverage']:.3f}" if row["certified"] else "refuses"
        notes.append(
            f"warning: with {_MANNERS[row['name']]} the policy served agrees on {seen['teacher_agreement']:.4f} "
            f"over {seen['coverage']:.3f} of them, below {target:g}: {_EXPECT[row['name']]}. "
            f"--assume {row['name']} {alone}"
        )
    if not notes:
        notes.append("random folds, near-duplicates kept together and the newest traces all support the certificate")
    return notes
