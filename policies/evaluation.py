"""A policy against traffic it has not seen: coverage, agreement on handled calls, time of a single decision."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns

import numpy as np
from numpy.typing import NDArray

from policies.policy import Policy
from policies.types import Trace


@dataclass(frozen=True)
class Evaluation:
    """`teacher_agreement` is over handled calls, None where there are none; times are microseconds a decision.

    `by_reason` counts deferred calls, `by_stage` handled ones by the stage of the cascade that answered them.
    """

    n: int
    coverage: float
    teacher_agreement: float | None
    n_handled: int
    by_reason: dict[str, int]
    by_stage: dict[str, int]
    decide_us_p50: float
    decide_us_p99: float


def evaluate(
    policy: Policy,
    traffic: list[Trace],
    embeddings: NDArray[np.float32] | None = None,
    on_row: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Decide every call of `traffic` one by one, as the gateway would.

    `embeddings` (n, d) where the policy reads them. Raises ValueError where they are missing or of another length.
    """
    if policy.input_kind == "embedding" and embeddings is None and policy.certified:
        raise ValueError("this policy reads embeddings: give them with --embeddings")
    if embeddings is not None and len(embeddings) != len(traffic):
        raise ValueError(f"{len(traffic)} calls, but {len(embeddings)} embeddings")
    inputs = [trace.input for trace in traffic] if embeddings is None else list(embeddings)
    reasons: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    agreed = handled = 0
    times = np.zeros(len(traffic))
    for i, (item, trace) in enumerate(zip(inputs, traffic, strict=True)):
        started = perf_counter_ns()
        decision = policy.decide(item)
        times[i] = (perf_counter_ns() - started) / 1e3
        if decision.handled:
            handled += 1
            stages[str(decision.stage)] += 1
            agreed += decision.label == policy.label_of(trace.answer)
        else:
            reasons[str(decision.reason)] += 1
        on_row(i)
    p50, p99 = np.percentile(times, [50, 99])
    return Evaluation(
        n=len(traffic),
        coverage=handled / len(traffic),
        teacher_agreement=agreed / handled if handled else None,
        n_handled=handled,
        by_reason=dict(reasons.most_common()),
        by_stage=dict(sorted(stages.items())),
        decide_us_p50=round(float(p50), 1),
        decide_us_p99=round(float(p99), 1),
    )
