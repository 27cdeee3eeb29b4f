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
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from gateway.draw import Draw
from gateway.intake import Intake
from gateway.metrics import Metrics
from gateway.observing import Found, Observed, Observer
from gateway.orders import Orders, audit_rules_of, offer_of, orders_of, rules_of
from gateway.registry import Registry
from gateway.settings import Settings
from policies import lifecycle
from policies.artifact import touch_version
from policies.audit_rate import settle
from policies.errors import ArtifactError, DocumentDamaged, StoreError
from policies.policy import Policy
from policies.projects import change, read, summary
from policies.record import Earlier, Record
from policies.states import ProjectState
from policies.types import Comparison, Move
from policies.verdicts import take

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
_LONGEST_WAIT = 5.0
_MOST_OBSERVED = 10_000
_READ_SECONDS = 0.05
_KEPT_COMPARISONS, _LOOK_SECONDS = 50_000, 600.0
_FIRST_SECONDS = 10.0  # the start waits so long for the store's first word


class Watch:
    """Follows the store at `settings.store.url` from `start` to `stop`.

    `intakes` has what was seen of each project, until it is handed in.
    """

    def __init__(self, settings: Settings, registry: Registry, metrics: Metrics, intakes: Mapping[str, Intake]) -> None:
        self.intakes = intakes
        self.draw: Draw | None = None
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._rules = {name: rules_of(settings, name) for name in settings.projects}
        self._audits = {name: audit_rules_of(project) for name, project in settings.projects.items()}
        self._observed: deque[Observed] = deque()
        self._offers: dict[str, Policy] = {}
        self._told: set[str] = set()  # projects of which the store has the settings
        self._broken: dict[str, float] = {}  # until when a project is left alone
        self._states: dict[str, ProjectState] = {}
        self._revisions: dict[str, int] = {}
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
            self.intakes[project].count(reason, calls)

    def saw(self, observed: Observed) -> None:
        """A call has been answered by the teacher. Never blocks, never raises."""
        if len(self._observed) >= _MOST_OBSERVED:
            self._metrics.evidence_dropped.inc()
            return
        self._observed.append(observed)

    def compares(self, project: str) -> bool:
        """Whether anything is to be learned from what the teacher says of a project's calls."""
        orders = self._registry.orders(project)
        return orders is not None and (orders.live is not None or orders.shadow is not None)

    def _offer(self, project: str, policy: Policy) -> None:
        self._offers[project] = policy
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
            # What a person has said comes first: nothing that takes long stands before it.
            revisions = record.revisions()
            self._read_observed(last=last)
            for project in self._settings.projects:
                self._turn_of(record, project, revisions.get(project), last=last)
            if not last:
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

    def _turn_of(self, record: Record, project: str, revision: int | None, *, last: bool) -> None:
        """One project's turn. What is wrong with its document, or its evidence, is no other project's business."""
        if time.monotonic() < self._broken.get(project, 0.0):
            return
        try:
            if revision is not None and revision != self._revisions.get(project):
                found = record.document(project)
                if found is not None:
                    self._know(project, found[0], read(found[1]))
            self._register(record, project)
            if self.intakes[project].is_due(last=last):
                self._report(record, project, last=last)
        except DocumentDamaged as error:
            self._break(project, error)
        except StoreError:
            raise
        except Exception as error:  # the border of a background task
            logger.exception("what was seen of project %s could not be counted, and is dropped", project)
            self.intakes[project].drop()
            self._break(project, error)

    def _break(self, project: str, error: Exception) -> None:
        logger.error("project %s stays as it is: %s", project, error)
        self._metrics.internal_errors.labels("watch").inc()
        self._broken[project] = time.monotonic() + _LONGEST_WAIT

    def _opened(self) -> Record:
        if self._record is None:
            self._record = Record.open(self._settings.store.url)
            self.draw = Draw(self._record.secret("audits"))
            self._observer = Observer(self._registry, self._metrics, self.draw)
        return self._record

    def _register(self, record: Record, project: str) -> None:
        """Tell the store what the folder serves, and what the settings say."""
        policy = self._offers.get(project)
        if policy is not None:
            made = offer_of(policy)
            self._change(record, project, lambda state: lifecycle.offer(state, made, time.time()))
            if self._offers.get(project) is policy:
                del self._offers[project]
        elif project not in self._told:
            self._change(record, project, lambda _: [])

    def _read_observed(self, *, last: bool) -> None:
        """What the teacher has answered, for some milliseconds at a time."""
        if self._observer is None:
            return
        until, found = time.monotonic() + _READ_SECONDS, dict[str, Found]()
        while self._observed and (last or time.monotonic() < until):
            observed = self._observed.popleft()
            self._observer.read(observed, found.setdefault(observed.project, Found()))
        for project, said in found.items():
            self.intakes[project].add(said)
        if self._observed:
            self._wake.set()

    def _report(self, record: Record, project: str, *, last: bool) -> None:
        state, intake = self._states[project], self.intakes[project]
        if state.live is None and state.shadow is None and not last:
            intake.drop()
            return
        handed = intake.hand_in(state, last=last)
        rules, audits, granted = self._rules[project], self._audits[project], 0

        def move(state: ProjectState, fresh: Sequence[Comparison], earlier: Earlier) -> list[Move]:
            nonlocal granted
            now = time.time()
            moves = take(state, handed.report, fresh, earlier, rules, now)
            granted = settle(state, handed.spent, audits, rules, now)
            return moves

        revision, state = change(record, project, move, handed.comparisons)
        intake.handed_in(handed, granted)
        self._know(project, revision, state)

    def _change(self, record: Record, project: str, move: Callable[[ProjectState], list[Move]]) -> None:
        def told(state: ProjectState, *_: object) -> list[Move]:
            state.rules, state.audits = self._rules[project], self._audits[project]
            return move(state)

        self._know(project, *change(record, project, told))
        self._told.add(project)

    def _know(self, project: str, revision: int, state: ProjectState) -> None:
        """A project stands so now: have the registry obey."""
        before = self._registry.orders(project)
        orders = orders_of(state, before)
        self._states[project], self._revisions[project] = state, revision
        self.intakes[project].rate = 0.0 if state.paused else state.rate
        self._metrics.projects.set(project, summary(project, state))
        if orders == before:
            return
        if self._observer is not None and (before is None or _stands(before) != _stands(orders)):
            self._observer.forget()
        # What is to be answered first: what is only to be kept, or compared, may take long to load, or fail.
        first = [orders.live] if orders.live is not None else []
        self._obey(project, orders, self._registry.load(project, first))
        if orders.versions - set(first):
            self._obey(project, orders, self._registry.load(project, orders.versions))

    def _obey(self, project: str, orders: Orders, loaded: dict[str, Policy | str]) -> None:
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

            self._change(record, project, move)


def _release(waiting: Sequence[asyncio.Future[None]]) -> None:
    for caught_up in waiting:
        if not caught_up.done():
            caught_up.set_result(None)


def _stands(orders: Orders) -> tuple[str | None, str | None, bool]:
    return orders.live, orders.shadow, orders.family is None
