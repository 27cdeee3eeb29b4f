"""(project, input) -> Decision: who answers this call, and why."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.errors import ScorersBusy
from gateway.metrics import Metrics
from gateway.registry import Serving
from gateway.scorers import Scorers
from gateway.settings import ServerSettings
from policies.policy import Policy
from policies.types import LocalDecision, Reason

Value = str | NDArray[np.float32]
Watched = Callable[[], AbstractContextManager[None]]

_Said = LocalDecision | BaseException | None

logger = logging.getLogger(__name__)

# A text of so many characters takes about a millisecond (a quarter of it in English): longer ones leave the event loop.
LONG_CHARS = 1_500
# Decisions on short texts that are remembered, for each policy: two to five megabytes.
_REMEMBERED = 4_096
_REMEMBERED_CHARS = 256
# Of a batch, a thread does so much at a time: other calls, and the event loop, come in between.
_WHILE_SECONDS = 2e-3
# Reasons that come after scoring: only then does a score mean anything.
_SCORED = frozenset({None, Reason.UNCERTAIN, Reason.NOVEL})


class Lane(StrEnum):
    """Who answers."""

    SURROGATE = "surrogate"
    MINI = "mini"
    TEACHER = "teacher"
    NONE = "none"  # nobody: the call was to stay here, and was deferred


class Decision(NamedTuple):
    """What happens to one call. `label` is the surrogate's where the call is handled, else None.

    `accept_score` is None where nothing was scored, `stage` is -1 where nothing was answered. `guess` is what the
    surrogate would have said, whether it may or not. A tool that the surrogate picked, but whose arguments an LLM
    writes, is handled by another lane.
    """

    lane: Lane
    label: str | None = None
    accept_score: float | None = None
    reason: Reason | None = None
    policy_version: str | None = None
    stage: int = -1
    guess: str | None = None

    @property
    def word(self) -> str:
        """`handled` or `deferred`."""
        return "deferred" if self.label is None else "handled"

    def put_off(self, reason: Reason) -> "Decision":
        """The same, deferred for a reason that has nothing to do with its score."""
        return self._replace(lane=Lane.TEACHER, label=None, reason=reason, stage=-1)

    def completed_by(self, lane: Lane) -> "Decision":
        """The same label, with arguments that another lane writes."""
        return self._replace(lane=lane, reason=Reason.ARGUMENTS)


class Decider:
    """Decides on inputs: on the event loop where that takes microseconds, else on a scorer's threads."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._scorers = Scorers(settings, metrics)

    async def decide(
        self, serving: Serving, text: str, agreement: float | None = None, watched: Watched = nullcontext
    ) -> Decision:
        """Decide on one text; `agreement`: how much of it is asked for, where that is more than was fitted for.

        Never raises: a fault in scoring is a reason to defer, logged and counted. What would wait too long for an
        encoder, or does, is deferred as busy. Only what `watched` raises goes through: it goes round whatever leaves
        the event loop, for as long as that takes.
        """
        decision = self.decide_quickly(serving, text, agreement)
        return decision or await self.decide_slowly(serving, text, agreement, watched)

    def decide_quickly(self, serving: Serving, text: str, agreement: float | None = None) -> Decision | None:
        """As `decide`, where that takes microseconds; None where it has to leave the event loop."""
        policy = serving.policy
        if policy is None:
            return deferred(serving, serving.reason)
        agreement = serving.held_to(agreement)
        local = serving.decided.get((text, agreement))
        if local is not None:
            return of_local(local, serving)
        if len(text) > LONG_CHARS:
            return None
        started = perf_counter()
        try:
            local = policy.decide_quickly(text, agreement) if policy.slow else policy.decide(text, agreement)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        if local is None:
            return None
        self._metrics.decision_seconds.observe(perf_counter() - started)
        _remember(serving, text, agreement, local)
        return of_local(local, serving)

    def decide_here(
        self, serving: Serving, value: str | NDArray[np.float32], agreement: float | None = None
    ) -> Decision:
        """As `decide`, on the calling thread whatever it takes; also for an embedding."""
        policy = serving.policy
        if policy is None:
            return deferred(serving, serving.reason)
        started = perf_counter()
        try:
            local = policy.decide(value, serving.held_to(agreement))
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        return of_local(local, serving)

    async def decide_rows(self, serving: Serving, rows: Sequence[Value], agreement: float | None) -> list[Decision]:
        """As `decide` on each of many texts or embeddings, which wait as long as it takes.

        A few milliseconds of them are with a thread at a time, so that other calls come in between.
        """
        policy = serving.policy
        if policy is None:
            return [deferred(serving, serving.reason)] * len(rows)
        agreement = serving.held_to(agreement)
        scorer, found = self._scorers.of(policy), list[_Said]()
        while len(found) < len(rows):
            work = partial(_for_a_while, policy, rows[len(found) :], agreement)
            found += await scorer.run(work, patient=True)
        undecided = [i for i, said in enumerate(found) if said is None]
        for start in range(0, len(undecided), policy.at_once):
            part = undecided[start : start + policy.at_once]
            texts = [str(rows[i]) for i in part]
            asking = [scorer.decide(policy, text, agreement, patient=True) for text in texts]
            for i, told in zip(part, await asyncio.gather(*asking, return_exceptions=True), strict=True):
                found[i] = told
        return [self._of_said(serving, said) for said in found]

    async def probabilities(
        self, serving: Serving, text: str, agreement: float | None = None, stage: int = -1
    ) -> dict[str, float] | None:
        """The policy's probability of each label; None where it has none to give, or scoring fails.

        `stage` is the one that has decided with the same agreement, where that is known: it may need no encoder.
        """
        policy = serving.policy
        if policy is None:
            return None
        agreement = serving.held_to(agreement)
        try:
            if len(text) > LONG_CHARS or policy.encodes(stage):
                return await self._scorers.of(policy).run(partial(policy.probabilities, text, agreement))
            return policy.probabilities(text, agreement)
        except ScorersBusy:
            return None
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            self._failed(serving, error)
            return None

    def close(self) -> None:
        """Let the threads end; what waits for them is dropped."""
        self._scorers.close()

    async def decide_slowly(
        self, serving: Serving, text: str, agreement: float | None = None, watched: Watched = nullcontext
    ) -> Decision:
        """As `decide`, of a text on which `decide_quickly` has said nothing."""
        policy = serving.policy
        if policy is None:
            return deferred(serving, serving.reason)
        started, agreement = perf_counter(), serving.held_to(agreement)
        with watched():
            try:
                local = await self._slowly(policy, text, agreement)
            except ScorersBusy:
                return deferred(serving, Reason.BUSY)
            except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
                return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        _remember(serving, text, agreement, local)
        return of_local(local, serving)

    async def _slowly(self, policy: Policy, text: str, agreement: float | None) -> LocalDecision:
        scorer = self._scorers.of(policy)
        if len(text) > LONG_CHARS:
            found = await scorer.run(partial(policy.decide_quickly, text, agreement))
            if found is not None:
                return found
        return await scorer.decide(policy, text, agreement)

    def _of_said(self, serving: Serving, said: _Said) -> Decision:
        if isinstance(said, LocalDecision):
            return of_local(said, serving)
        return self._failed(serving, said)

    def _failed(self, serving: Serving, error: object) -> Decision:
        self._metrics.internal_errors.labels("decide").inc()
        # One line, and no message: a fault may come with every call and may quote its text.
        logger.error("local scoring failed (%s); the call is deferred", type(error).__name__)
        return deferred(serving, Reason.ERROR)


def _remember(serving: Serving, text: str, agreement: float | None, local: LocalDecision) -> None:
    if len(text) > _REMEMBERED_CHARS:
        return
    if len(serving.decided) >= _REMEMBERED:
        serving.decided.clear()  # what is frequent is soon back
    serving.decided[text, agreement] = local


def _for_a_while(policy: Policy, rows: Sequence[Value], agreement: float | None) -> list[_Said]:
    """What the policy says of the first rows, until a few milliseconds are over; None where it needs the encoder."""
    until = perf_counter() + _WHILE_SECONDS
    found: list[_Said] = []
    for row in rows:
        try:
            said = policy.decide_quickly(row, agreement) if isinstance(row, str) else policy.decide(row, agreement)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: one row's fault is not the others'
            found.append(error)
        else:
            found.append(said)
        if perf_counter() > until:
            break
    return found


def deferred(serving: Serving, reason: Reason) -> Decision:
    """A decision to defer without having scored."""
    return Decision(Lane.TEACHER, reason=reason, policy_version=serving.version)


def of_local(local: LocalDecision, serving: Serving) -> Decision:
    """The call's decision where the policy has said `local`."""
    score = local.accept_score if local.reason in _SCORED else None
    if local.label in serving.withheld:
        return Decision(Lane.TEACHER, None, score, Reason.LABEL, serving.version, -1, local.guess)
    lane = Lane.SURROGATE if local.handled else Lane.TEACHER
    return Decision(lane, local.label, score, local.reason, serving.version, local.stage, local.guess)
