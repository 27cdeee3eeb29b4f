"""The policies being served, by project: loaded, watched and swapped whole.

The manifest on disk is the truth: a new one is loaded and swapped in, a damaged one stops local answers, a removed one
brings the project back to observing.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from gateway.memory import give_back
from gateway.metrics import Metrics
from gateway.settings import Settings
from policies.artifact import MANIFEST
from policies.errors import ArtifactError, PolicyMissing
from policies.policy import Policy
from policies.types import LocalDecision, Reason

logger = logging.getLogger(__name__)

Decided = dict[tuple[str, float | None], LocalDecision]

# What tells one manifest.json from the next without reading it: (mtime_ns, inode, size).
_Mark = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Serving:
    """What a project serves at one moment. Replaced whole, so a call sees one policy from its start to its end.

    Where `policy` is None, `reason` says why every call is deferred. `decided` is what the policy has said of short
    texts: it says the same of them every time, and customers say the same things (see `Decider.decide_quickly`).
    """

    policy: Policy | None
    reason: Reason = Reason.NO_POLICY
    detail: str = ""
    decided: Decided = field(default_factory=dict, compare=False, repr=False)

    @property
    def version(self) -> str | None:
        """The policy's version, None without a policy."""
        return None if self.policy is None else self.policy.version

    def said(self, label: str | None) -> str | None:
        """A label of the policy as its teacher says it; None where there is none."""
        return None if label is None or self.policy is None else self.policy.said(label)

    @property
    def state(self) -> str:
        """One word for people: observing, live, refused or damaged."""
        if self.policy is None:
            return "damaged" if self.reason is Reason.DAMAGED else "observing"
        return "live" if self.policy.certified else "refused"


class Registry:
    """Loaded policies by project. `start` loads them and watches their folders until `stop`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._paths = {name: project.policy for name, project in settings.projects.items()}
        self._interval = settings.server.policy_poll_seconds
        self._metrics = metrics
        self._serving = dict.fromkeys(self._paths, Serving(None))
        self._marks: dict[str, _Mark | None] = {}
        self._watcher: asyncio.Task[None] | None = None

    def serving(self, project: str) -> Serving:
        """What `project`, which is configured, serves now."""
        return self._serving[project]

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
            if mark == self._marks.get(project) and self._serving[project].reason is not Reason.DAMAGED:
                continue
            serving = await asyncio.to_thread(_load, path)
            self._marks[project] = mark
            self._swap(project, serving)
            if serving.policy is not None:
                await asyncio.to_thread(give_back)

    def _swap(self, project: str, new: Serving) -> None:
        old = self._serving[project]
        self._serving[project] = new
        if (new.version, new.reason, new.detail) == (old.version, old.reason, old.detail):
            return
        logger.info("project %s: %s %s%s", project, new.state, new.version or "", new.detail)
        metrics = self._metrics
        if new.reason is Reason.DAMAGED:
            metrics.policy_loads.labels("damaged").inc()
        if new.policy is not None:
            metrics.policy_loads.labels("ok").inc()
        certified = new.policy is not None and new.policy.certified
        coverage = new.policy.manifest.certificate.coverage if new.policy is not None and certified else 0.0
        metrics.policies.set(project, new.version, certified, coverage)


def _mark(path: Path) -> _Mark | None:
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _load(path: Path) -> Serving:
    try:
        return Serving(Policy.load(path))
    except PolicyMissing:
        return Serving(None)
    except ArtifactError as error:
        return Serving(None, Reason.DAMAGED, str(error))
    except Exception as error:  # the border of a load: whatever is wrong with it, the folder is no policy
        logger.exception("loading the policy at %s failed", path)
        return Serving(None, Reason.DAMAGED, f"{type(error).__name__}: {error}")
