"""The store's word on each project, followed; what has been seen of live calls, handed in.

One thread a process. Four times a second it asks the store whether a project has changed, and has the registry obey;
what calls have shown goes there in one transaction a project, so that the evidence of all processes is one sequence.
While the store is away the last word holds, evidence waits (bounded), and what is decided is decided as before.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.draw import Draw
from gateway.metrics import Metrics
from gateway.observing import Found, Observed, Observer
from gateway.registry import Orders, Registry
from gateway.settings import ProjectSettings, Settings
from policies import lifecycle
from policies.artifact import touch_version
from policies.audit_rate import Spent, lease, settle
from policies.errors import ArtifactError, StoreError
from policies.evidence import Report
from policies.lifecycle import Offer
from policies.policy import Policy
from policies.projects import read, summary
from policies.prompts import Prompt
from policies.record import Record
from policies.rules import AuditRules, Rules
from policies.states import ProjectState
from policies.types import Comparison, Move, Reason
from policies.verdicts import take

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
_REPORT_SECONDS = 0.5
_IDLE_REPORT_SECONDS = 5.0  # without anything seen: rates and budgets still move
_LONGEST_WAIT = 5.0
_MOST_OBSERVED = 10_000
_AT_ONCE = 500
_MOST_TRUSTED = 200
_KEPT_COMPARISONS, _LOOK_SECONDS = 50_000, 600.0
_FIRST_SECONDS = 10.0  # the start waits so long for the store's first word

# Reasons under which the live policy was asked.
_DECIDED = frozenset({"", Reason.UNCERTAIN, Reason.NOVEL, Reason.LABEL, Reason.ARGUMENTS})
_STRANGE = frozenset({Reason.PROMPT, Reason.MODEL})


class Pace:
    """How often a project's handled calls are audited now. Read on the event loop, set by the thread."""

    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 0.0


class Watch:
    """Follows the store at `settings.store.url` from `start` to `stop`.

    `budgets` are the auditor's, by project: anything with `left`, `grant`, `withdraw` and `take`.
    """

    def __init__(self, settings: Settings, registry: Registry, metrics: Metrics, budgets: Mapping[str, Any]) -> None:
        self.paces = {name: Pace() for name in settings.projects}
        self.draw: Draw | None = None
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._budgets = budgets
        self._rules = {name: _rules(settings, name) for name in settings.projects}
        self._audits = {name: _audit_rules(project) for name, project in settings.projects.items()}
        self._observed: deque[Observed] = deque()
        self._offers: deque[tuple[str, Policy]] = deque()
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in settings.projects}
        self._taken: dict[str, Counter[str]] = {name: Counter() for name in settings.projects}
        self._unbooked: dict[str, float] = dict.fromkeys(settings.projects, 0.0)  # US dollars
        self._trusted: dict[str, set[tuple[str, str]]] = {name: set() for name in settings.projects}
        self._on_trust: deque[tuple[str, str, Prompt]] = deque()
        self._unsent: dict[str, tuple[list[Comparison], Report]] = {}
        self._states: dict[str, ProjectState] = {}
        self._revisions: dict[str, int] = {}
        self._due: dict[str, float] = dict.fromkeys(settings.projects, 0.0)
        self._record: Record | None = None
        self._observer: Observer | None = None
        self._away = 0.0
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._first = threading.Event()
        self._waiting: deque[asyncio.Future[None]] = deque()  # for the next turn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        registry.on_offer = self._offer

    async def start(self) -> None:
        """Start; what the folders offer is in force when this returns, unless the store is away."""
        self._loop = asyncio.get_running_loop()
        if not self._settings.projects:
            return
        self._thread.start()
        # The thread's swaps run on this loop: waiting must not block it.
        await asyncio.to_thread(self._first.wait, _FIRST_SECONDS)

    async def stop(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - the contract of a bounded shutdown
        """Hand in what has been seen, and end."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout)

    async def catch_up(self, seconds: float = 1.0) -> None:
        """Ask the store now: what it says is in force here afterwards, unless it is away or this takes too long."""
        if self._loop is None or not self._thread.is_alive():
            return
        caught_up = self._loop.create_future()
        self._waiting.append(caught_up)
        self._wake.set()
        await asyncio.wait([caught_up], timeout=seconds)

    def count(self, project: str, reason: str, calls: int = 1) -> None:
        """Calls of a project have been decided on, under this reason ("" where they were answered)."""
        if project:
            self._counts[project][reason] += calls

    def saw(self, observed: Observed) -> None:
        """A call has been answered by the teacher. Never blocks, never raises."""
        if len(self._observed) >= _MOST_OBSERVED:
            self._metrics.evidence_dropped.inc()
            return
        self._observed.append(observed)

    def trust(self, project: str, version: str, prompt: Prompt) -> None:
        """A call with this prompt has been answered on trust. Cheap for a prompt that has come by before."""
        known = self._trusted[project]
        if (version, prompt.fingerprint) not in known and len(known) < _MOST_TRUSTED:
            known.add((version, prompt.fingerprint))
            self._on_trust.append((project, version, prompt))

    def compares(self, project: str) -> bool:
        """Whether anything is to be learned from what the teacher says of a project's calls."""
        orders = self._registry.orders(project)
        return orders is not None and (orders.live is not None or orders.shadow is not None)

    def _offer(self, project: str, policy: Policy) -> None:
        self._offers.append((project, policy))
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._away or POLL_SECONDS)
            self._wake.clear()
            waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._turn()
            if waiting and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_release, waiting)
        self._turn(last=True)
        if self._record is not None:
            self._record.close()

    def _turn(self, *, last: bool = False) -> None:
        try:
            record = self._opened()
            self._register(record)
            self._hand_in(record, last=last)
            if not last:
                self._follow(record)
                self._look_after(record)
        except StoreError as error:
            if not self._away:
                logger.warning("the store is away, projects stay as they are: %s", error)
            self._metrics.store_up.set(0)
            self._away = min(_LONGEST_WAIT, 2 * self._away or POLL_SECONDS)
        except Exception:  # the border of a background task
            logger.exception("following the store failed")
            self._metrics.internal_errors.labels("watch").inc()
            self._away = min(_LONGEST_WAIT, 2 * self._away or POLL_SECONDS)
        else:
            if self._away:
                logger.info("the store is back")
            self._away = 0.0
            self._metrics.store_up.set(1)
        self._first.set()

    def _opened(self) -> Record:
        if self._record is None:
            self._record = Record.open(self._settings.store.url)
            self.draw = Draw(self._record.secret("audits"))
            self._observer = Observer(self._registry, self._metrics, self.draw)
        return self._record

    def _register(self, record: Record) -> None:
        """Tell the store what the folders serve, and what the settings say."""
        while self._offers:
            project, policy = self._offers[0]
            made = _offer(policy)

            def move(state: ProjectState) -> list[Move]:
                return lifecycle.offer(state, made, time.time())  # noqa: B023 - called at once

            self._change(record, project, [], move)
            self._offers.popleft()
        for project in self._settings.projects.keys() - self._states.keys():
            self._change(record, project, [], lambda _: [])

    def _hand_in(self, record: Record, *, last: bool) -> None:
        """What has been seen since, one transaction a project."""
        waiting: dict[str, list[Observed]] = {}
        for _ in range(min(len(self._observed), _AT_ONCE)):
            observed = self._observed.popleft()
            waiting.setdefault(observed.project, []).append(observed)
        for _ in range(len(self._on_trust)):
            project, version, prompt = self._on_trust.popleft()
            self._unsent.setdefault(project, ([], Report()))[1].prompts.append((version, prompt))
        for project in self._settings.projects:
            self._read(project, waiting.get(project, []))
            if self._is_due(project, last=last):
                self._report(record, project, last=last)
        if self._observed:
            self._wake.set()

    def _read(self, project: str, observed: Sequence[Observed]) -> None:
        if not observed or self._observer is None:
            return
        # Without budget nothing of what is answered is compared, whatever the rate.
        budget = self._budgets.get(project)
        rate = self.paces[project].rate if budget is not None and budget.left else 0.0
        found = self._observer.read(project, observed, rate)
        comparisons, report = self._unsent.get(project, ([], Report()))
        self._unsent[project] = (comparisons + found.comparisons)[-_MOST_OBSERVED:], _joined(report, found)

    def _is_due(self, project: str, *, last: bool) -> bool:
        if project not in self._states:
            return False
        seen = project in self._unsent or self._counts[project] != self._taken[project]
        if last:
            return seen
        return time.monotonic() >= self._due[project] + (_REPORT_SECONDS if seen else _IDLE_REPORT_SECONDS)

    def _report(self, record: Record, project: str, *, last: bool) -> None:
        state = self._states[project]
        if state.live is None and state.shadow is None:
            self._unsent.pop(project, None)
            self._taken[project] = self._counts[project].copy()
            return
        comparisons, report = self._unsent.get(project, ([], Report()))
        counts = self._counts[project].copy()
        new = counts - self._taken[project]
        report = _counted(report, new, state)
        rules, audits = self._rules[project], self._audits[project]
        budget = self._budgets.get(project)
        unused = budget.withdraw() if last and budget is not None else 0
        self._unbooked[project] += 0.0 if budget is None else budget.take()[1]
        wanted = 0 if last or budget is None else max(0, lease(state, audits) - budget.left)
        spent = Spent(new[""], self._unbooked[project], wanted, unused)
        granted = 0

        def step(
            document: dict[str, Any], fresh: Sequence[Comparison], earlier: Any
        ) -> tuple[dict[str, Any], Sequence[Move]]:
            nonlocal granted
            found, now = read(document), time.time()
            moves = take(found, report, fresh, earlier, rules, now)
            granted = settle(found, spent, audits, rules, now)
            return found.to_json(), [replace(move, project=project) for move in moves]

        self._due[project] = time.monotonic()
        revision, document = record.change(project, comparisons, step)
        self._unsent.pop(project, None)
        self._taken[project], self._unbooked[project] = counts, 0.0
        if budget is not None and granted:
            budget.grant(granted)
        self._know(project, revision, document)

    def _follow(self, record: Record) -> None:
        revisions = record.revisions()
        for project in self._settings.projects:
            if project in revisions and revisions[project] != self._revisions.get(project):
                found = record.document(project)
                if found is not None:
                    self._know(project, *found)

    def _change(
        self,
        record: Record,
        project: str,
        comparisons: Sequence[Comparison],
        move: Callable[[ProjectState], list[Move]],
    ) -> None:
        def step(document: dict[str, Any], *_: object) -> tuple[dict[str, Any], Sequence[Move]]:
            state = read(document)
            state.rules, state.audits = self._rules[project], self._audits[project]
            moves = move(state)
            return state.to_json(), [replace(made, project=project) for made in moves]

        self._know(project, *record.change(project, comparisons, step))

    def _know(self, project: str, revision: int, document: dict[str, Any]) -> None:
        """A project stands so now: have the registry obey."""
        state = read(document)
        before = self._registry.orders(project)
        orders = _orders(state, before)
        self._states[project], self._revisions[project] = state, revision
        self.paces[project].rate = state.rate if not state.paused else 0.0
        self._metrics.projects.set(project, summary(project, state))
        if orders == before:
            return
        if self._observer is not None and (before is None or _stands(before) != _stands(orders)):
            self._observer.forget()
        loaded = self._registry.load(project, orders)
        obeyed = threading.Event()

        def obey() -> None:
            self._registry.obey(project, orders, loaded)
            obeyed.set()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(obey)
            obeyed.wait(1.0)

    def _look_after(self, record: Record) -> None:
        """Now and then: forget old comparisons, keep what is live, and ask whether it still decides as it did."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        for project, settings in self._settings.projects.items():
            record.prune(project, _KEPT_COMPARISONS)
            orders = self._registry.orders(project)
            policy = None if orders is None else self._registry.policy(project, orders.live)
            if policy is None:
                continue
            with contextlib.suppress(ArtifactError):  # a folder that cannot be written loses no versions either
                touch_version(settings.policy, policy.version)
            self._probe(record, project, policy)

    def _probe(self, record: Record, project: str, policy: Policy) -> None:
        """A policy whose encoder is behind a URL may have become another."""
        if not policy.remote:
            return
        try:
            changed = policy.probe()
        except ConnectionError:
            return  # then its calls are deferred anyway
        if changed is not None:

            def move(state: ProjectState) -> list[Move]:
                live = state.serving
                if live is None or live.version != policy.version:
                    return []
                return [lifecycle.go_to_shadow(state, live, "encoder", lifecycle.GATEWAY, time.time(), {"is": changed})]

            self._change(record, project, [], move)


def _release(waiting: Sequence[asyncio.Future[None]]) -> None:
    for caught_up in waiting:
        if not caught_up.done():
            caught_up.set_result(None)


def _rules(settings: Settings, name: str) -> Rules:
    project = settings.projects[name]
    proof = project.proof
    return Rules(
        promotion=project.promotion,
        delta=proof.promotion_risk,
        alpha=proof.demotion_risk,
        run_length=proof.false_alarm_audits,
        builds=proof.system_fingerprint,
        watched=settings.upstream_of(name) is not None,
    )


def _audit_rules(project: ProjectSettings) -> AuditRules:
    audit = project.audit
    return AuditRules(
        audit.rate, audit.first_rate, audit.first_hours, audit.most_rate, audit.daily_calls, audit.daily_usd
    )


def _offer(policy: Policy) -> Offer:
    manifest = policy.manifest
    certificate = manifest.certificate
    budget = manifest.settings.get("guard_budget")
    return Offer(
        policy.version,
        policy.certified,
        certificate.target,
        certificate.confidence,
        policy.rungs if policy.certified else (),
        manifest.n_labels,
        budget if isinstance(budget, float) else 0.01,
        certificate.reason,
    )


def _orders(state: ProjectState, before: Orders | None) -> Orders:
    live, shadow = state.serving, state.shadow
    family = None
    if live is not None and not live.openness and len(live.family):
        family = live.family
        if before is not None and before.family is not None and before.family.to_json() == family.to_json():
            family = before.family  # which remembers what it has been asked
    return Orders(
        state.state,
        state.paused,
        state.live,
        None if live is None else live.agreement,
        frozenset() if live is None else frozenset(live.withheld),
        family,
        None if shadow is None else shadow.version,
        next((version for version in reversed(state.past) if version != state.live), None),
        _told(state),
    )


def _told(state: ProjectState) -> str:
    """Why nothing answers, for people; "" where something does, or nothing ever did."""
    if state.live is not None:
        return ""
    if state.shadow is not None:
        return f"{state.shadow.version} is in shadow and answers nothing yet: {state.shadow.cause}"
    stopped = [policy for policy in state.policies.values() if policy.state is state.state]
    return f"{stopped[-1].version} is {state.state}: {stopped[-1].cause}" if stopped else ""


def _stands(orders: Orders) -> tuple[str | None, str | None, bool]:
    return orders.live, orders.shadow, orders.family is None


def _counted(report: Report, new: Counter[str], state: ProjectState) -> Report:
    """The report, with the calls that were counted since the last one."""
    live = state.serving
    if live is None:
        return report
    decided = sum(n for reason, n in new.items() if reason in _DECIDED)
    strange = sum(n for reason, n in new.items() if reason in _STRANGE)
    return replace(
        report,
        decided=report.decided | {live.version: (decided, new[Reason.NOVEL])},
        trusted={live.version: decided},
        known=decided,
        strange=strange,
        model=new[Reason.MODEL],
    )


def _joined(report: Report, found: Found) -> Report:
    """One report of two."""
    other = found.report
    decided = dict(report.decided)
    for version, (calls, novel) in other.decided.items():
        before = decided.get(version, (0, 0))
        decided[version] = before[0] + calls, before[1] + novel
    teachers = dict(report.teachers)
    for name, answers in other.teachers.items():
        teachers[name] = teachers.get(name, 0) + answers
    return Report(
        decided,
        report.prompts + other.prompts,
        report.strangers + other.strangers,
        teachers=teachers,
        unseen=(report.unseen + other.unseen)[-_AT_ONCE:],
    )
