"""What each project serves: the policies in its folder, and where each of them stands.

The manifest on disk is the truth about what there is: a new version is offered to the store, a damaged folder stops
local answers, a removed one brings the project back to observing. The store is the truth about which of them answers
(`gateway.watch` reads it and calls `obey`). What is served is swapped whole.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gateway.memory import give_back
from gateway.metrics import Metrics
from gateway.orders import Orders
from gateway.settings import Settings
from policies.artifact import MANIFEST
from policies.errors import ArtifactError, PolicyChanged, PolicyMissing
from policies.policy import Policy
from policies.prompts import Family
from policies.states import State
from policies.types import LocalDecision, Reason

logger = logging.getLogger(__name__)

Decided = dict[tuple[str, float | None], LocalDecision]

# A policy that decides otherwise than it was certified is tried again so often: its files are right, an endpoint may
# have its model back, and each look is paid for.
_CHANGED_SECONDS = 60.0

# What tells one manifest.json from the next without reading it: (mtime_ns, inode, size).
_Mark = tuple[int, int, int]

# Why a project whose policies stand so answers nothing here.
_REASONS = {
    State.OBSERVING: Reason.STATE,
    State.CANDIDATE: Reason.CANDIDATE,
    State.SHADOW: Reason.SHADOW,
    State.DEMOTED: Reason.DEMOTED,
    State.RETIRED: Reason.DEMOTED,
    State.LIVE: Reason.STATE,
}


@dataclass(frozen=True, slots=True)
class Serving:
    """What a project serves at one moment. Replaced whole, so a call sees one policy from its start to its end.

    Where `policy` is None, `reason` says why every call is deferred. `decided` is what the policy has said of short
    texts: it says the same of them every time, and customers say the same things (see `Decider.decide_quickly`).
    `agreement`, `withheld`, `family`, `trusting`, `stretch` and `shadow` are as in `Orders`.
    """

    policy: Policy | None
    reason: Reason = Reason.NO_POLICY
    detail: str = ""
    agreement: float | None = None
    withheld: frozenset[str] = frozenset()
    family: Family | None = field(default=None, compare=False)
    trusting: bool = False
    stretch: int = 0
    shadow: str | None = None
    decided: Decided = field(default_factory=dict, compare=False, repr=False)

    @property
    def version(self) -> str | None:
        """The policy's version, None without a policy."""
        return None if self.policy is None else self.policy.version

    def said(self, label: str | None) -> str | None:
        """A label of the policy as its teacher says it; None where there is none."""
        return None if label is None or self.policy is None else self.policy.said(label)

    def held_to(self, asked: float | None) -> float | None:
        """The agreement that a call's answer must have: what it asks for, or what the policy is held to."""
        own = self.agreement
        return own if asked is None or (own is not None and own > asked) else asked

    @property
    def state(self) -> str:
        """One word for people."""
        if self.policy is not None:
            return "live" if self.policy.certified else "refused"
        return _STATES.get(self.reason, "observing")


_STATES = {
    Reason.DAMAGED: "damaged",
    Reason.CANDIDATE: "candidate",
    Reason.SHADOW: "shadow",
    Reason.DEMOTED: "demoted",
    Reason.PAUSED: "paused",
    Reason.STATE: "unknown",
}


class Registry:
    """Loaded policies by project. `start` loads them and watches their folders until `stop`.

    A project without an upstream has nobody to be compared with: until the store speaks it serves what its folder does.
    Any other serves nothing until then.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._paths = {name: project.policy for name, project in settings.projects.items()}
        self._alone = {name for name in self._paths if settings.upstream_of(name) is None}
        self._interval = settings.server.policy_poll_seconds
        self._metrics = metrics
        self._offered = dict.fromkeys(self._paths, Serving(None))
        self._serving = dict(self._offered)
        self._orders: dict[str, Orders] = {}
        # Versions of a project that are loaded, and what was wrong with those that could not be.
        self._loaded: dict[str, dict[str, Policy | str]] = {name: {} for name in self._paths}
        self._marks: dict[str, _Mark | None] = {}
        # Until when a folder that is as it was is not read again, though it is damaged.
        self._rests = dict.fromkeys(self._paths, 0.0)
        self._watcher: asyncio.Task[None] | None = None
        self.on_offer: Callable[[str, Policy], None] = lambda *_: None
        """Called, on the event loop, with each policy that a folder serves anew."""

    def serving(self, project: str) -> Serving:
        """What `project`, which is configured, serves now."""
        return self._serving[project]

    def offered(self, project: str) -> Policy | None:
        """The policy that a project's folder serves."""
        return self._offered[project].policy

    def policy(self, project: str, version: str | None) -> Policy | None:
        """A version that is loaded; None where it is not."""
        found = self._loaded[project].get(version) if version is not None else None
        return found if isinstance(found, Policy) else None

    def orders(self, project: str) -> Orders | None:
        """What the store has said of a project; None before it has."""
        return self._orders.get(project)

    async def start(self) -> None:
        """Load every policy there is, then watch in the background."""
        await self._look()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher

    def load(self, project: str, versions: Iterable[str]) -> dict[str, Policy | str]:
        """These versions, those that are loaded already as they are. Blocks; changes nothing."""
        known, found = self._loaded[project], dict[str, Policy | str]()
        for version in versions:
            before = known.get(version)
            found[version] = before if isinstance(before, Policy) else _load_version(self._paths[project], version)
        return found

    def obey(self, project: str, orders: Orders, loaded: dict[str, Policy | str]) -> None:
        """Serve as the store says, from now on. On the event loop."""
        offered = self._offered[project].policy
        self._orders[project] = orders
        self._loaded[project] = loaded if offered is None else {offered.version: offered, **loaded}
        self._resolve(project)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self._look()
            except Exception:  # the border of a background task: it must outlive one bad look
                self._metrics.internal_errors.labels("policy_watch").inc()
                logger.exception("looking for new policies failed")

    async def _look(self) -> None:
        for project, path in self._paths.items():
            mark = await asyncio.to_thread(_mark, path)
            # A damaged folder is read again each time: it may be a copy that is still under way.
            settled = self._offered[project].reason is not Reason.DAMAGED or time.monotonic() < self._rests[project]
            if mark == self._marks.get(project) and settled:
                continue
            offered, rest = await asyncio.to_thread(_load, path)
            self._marks[project], self._rests[project] = mark, time.monotonic() + rest
            self._offer(project, offered)
            if offered.policy is not None:
                await asyncio.to_thread(give_back)

    def _offer(self, project: str, offered: Serving) -> None:
        before, self._offered[project] = self._offered[project], offered
        policy = offered.policy
        if offered.reason is Reason.DAMAGED and offered.detail != before.detail:
            self._metrics.policy_loads.labels("damaged").inc()
        if policy is not None:
            self._metrics.policy_loads.labels("ok").inc()
            self._loaded[project][policy.version] = policy
        self._resolve(project)
        if policy is not None:
            self.on_offer(project, policy)

    def _resolve(self, project: str) -> None:
        """Swap what is served for what folder and store together say."""
        new, old = self._wanted(project), self._serving[project]
        if new.policy is old.policy:
            new = replace(new, decided=old.decided)
        self._serving[project] = new
        if (new.version, new.reason, new.detail) == (old.version, old.reason, old.detail):
            return
        logger.info("project %s: %s %s%s", project, new.state, new.version or "", new.detail)
        certified = new.policy is not None and new.policy.certified
        coverage = new.policy.manifest.certificate.coverage if new.policy is not None and certified else 0.0
        self._metrics.policies.set(project, new.version, certified, coverage)

    def _wanted(self, project: str) -> Serving:
        offered, orders = self._offered[project], self._orders.get(project)
        if offered.policy is None:
            return offered
        if orders is None:
            return offered if project in self._alone or not offered.policy.certified else Serving(None, Reason.STATE)
        if orders.paused or (orders.live is None and orders.state is not State.REFUSED):
            reason = Reason.PAUSED if orders.paused else _REASONS[orders.state]
            return Serving(None, reason, orders.told, shadow=orders.shadow)
        if orders.live is None:
            # A certified one is new to the store, which has not said a word of it yet.
            return Serving(None, Reason.STATE) if offered.policy.certified else offered
        found = self._loaded[project].get(orders.live, f"the live policy {orders.live} is not loaded")
        if isinstance(found, str):
            return Serving(None, Reason.DAMAGED, found)
        return Serving(
            found,
            agreement=orders.agreement,
            withheld=orders.withheld,
            family=orders.family,
            trusting=orders.trusting,
            stretch=orders.stretch,
            shadow=orders.shadow,
        )


def _mark(path: Path) -> _Mark | None:
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _load(path: Path) -> tuple[Serving, float]:
    """What a folder offers, and for how many seconds that will do while it is as it is, if it is damaged."""
    try:
        return Serving(Policy.load(path)), 0.0
    except PolicyMissing:
        return Serving(None), 0.0
    except PolicyChanged as error:
        return Serving(None, Reason.DAMAGED, str(error)), _CHANGED_SECONDS
    except ArtifactError as error:
        return Serving(None, Reason.DAMAGED, str(error)), 0.0
    except Exception as error:  # the border of a load: whatever is wrong with it, the folder is no policy
        logger.exception("loading the policy at %s failed", path)
        return Serving(None, Reason.DAMAGED, f"{type(error).__name__}: {error}"), 0.0


def _load_version(path: Path, version: str) -> Policy | str:
    try:
        return Policy.load(path, version)
    except ArtifactError as error:
        return str(error)
    except Exception as error:  # the border of a load, as above
        logger.exception("loading the policy %s at %s failed", version, path)
        return f"{type(error).__name__}: {error}"
