"""The metrics of several workers, added up: prometheus_client's memory-mapped files, one set for each worker's place.

A process that takes a dead one's place goes on with its files: no total ever goes backwards, and there are never more
files than places. What is true of a living worker only, its gauges, goes with it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, values
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_PREFIX = "tracer-metrics-"
# Where it is there, for a disk that is slow or full must not hold up a call that is counted.
_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made in it is nobody else's to read or write
_LOCK = "lock"
_RUNNING = "running-"
# The files of one worker, and what is set aside for each: writing to mapped memory that cannot be had ends a process.
_FILES = {"counter": 1 << 18, "histogram": 1 << 18, "gauge_livesum": 1 << 16, "gauge_livemax": 1 << 16}


class SampledGauge(Gauge):
    """A gauge whose value is a function's. Other processes read what it was at the last `sample`."""

    _sampled: Callable[[], float] | None = None

    def set_function(self, f: Callable[[], float]) -> None:
        """Take the value from `f`."""
        self._sampled = f
        super().set_function(f)

    def sample(self) -> None:
        """Write the value down for others."""
        if self._sampled is not None:
            self.set(self._sampled())


class MetricsFolder:
    """The folder of one gateway's files. OSError where it cannot be made or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Held by every process that uses the folder, for as long as it runs: what nobody holds is left over.
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    @classmethod
    def create(cls) -> "MetricsFolder":
        """A new one, private to this user; what gateways that were killed have left behind goes."""
        root = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        for path in root.glob(f"{_PREFIX}*"):
            _remove_abandoned(path)
        # Under its final name only when it is locked.
        made = cls(Path(tempfile.mkdtemp(prefix=f"new-{_PREFIX}", dir=root)))
        made.path = made.path.rename(root / made.path.name.removeprefix("new-"))
        return made

    def join(self, worker: int) -> None:
        """Let every metric that this process makes from now on live in the files of `worker`, counted from 0."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.path)
        for name, size in _FILES.items():
            with (self.path / f"{name}_{worker}.db").open("ab") as file:
                if not file.tell():
                    _set_aside(file.fileno(), size)
        values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]

    def announce(self, worker: int) -> None:
        """This process is `worker`, and serves."""
        (self.path / f"{_RUNNING}{worker}").write_text(str(os.getpid()))

    def forget(self, worker: int) -> None:
        """The process that was `worker` is dead."""
        (self.path / f"{_RUNNING}{worker}").unlink(missing_ok=True)
        mark_process_dead(worker, str(self.path))  # type: ignore[no-untyped-call]

    def running(self) -> dict[str, int]:
        """The process ids of the workers that serve, by worker."""
        found = {}
        for path in sorted(self.path.glob(f"{_RUNNING}*")):
            with contextlib.suppress(OSError, ValueError):  # it has just gone, or is just being written
                found[path.name.removeprefix(_RUNNING)] = int(path.read_text())
        return found

    def files(self) -> list[str]:
        """The files to add up."""
        return [str(path) for path in sorted(self.path.glob("*.db"))]

    def remove(self) -> None:
        """Nobody counts any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


class AddedUp(Collector):
    """What all workers have counted, and of the rest what the worker says that is asked.

    `own` are the metrics of that worker. Those of processes get a label `worker`: its number, or `supervisor`.
    """

    def __init__(self, folder: MetricsFolder, own: CollectorRegistry) -> None:
        self._folder = folder
        self._own = own

    def collect(self) -> Iterator[Metric]:
        """Every family once."""
        merged = MultiProcessCollector.merge(self._folder.files())  # type: ignore[no-untyped-call]
        families: dict[str, Metric] = {family.name: family for family in merged}
        for family in self._own.collect():
            families.setdefault(family.name, family)
        yield from families.values()
        yield from _processes({**self._folder.running(), "supervisor": os.getppid()})


def _processes(pids: dict[str, int]) -> Iterable[Metric]:
    families: dict[str, Metric] = {}
    for worker, pid in pids.items():
        for found in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
    return families.values()


def _set_aside(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _remove_abandoned(path: Path) -> None:
    """Remove the folder unless a process uses it, or it is another user's."""
    with contextlib.suppress(OSError):
        if path.lstat().st_uid != os.geteuid():
            return
        lock = os.open(path / _LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)
