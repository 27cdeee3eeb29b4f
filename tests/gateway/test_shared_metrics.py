"""The folder in which several workers count: who may use it, and what becomes of it. Counting itself: test_workers."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from gateway.metrics import Metrics
from gateway.shared_metrics import MetricsFolder
from tests.serving import ROOT


def _left_behind() -> Path:
    """The folder of a process that has ended without removing it."""
    code = "from gateway.shared_metrics import MetricsFolder; print(MetricsFolder.create().path)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return Path(done.stdout.strip())


def test_a_new_folder_is_private_and_sweeps_away_what_was_left_behind() -> None:
    """But nothing that a running gateway uses."""
    abandoned = _left_behind()
    assert abandoned.is_dir()
    with contextlib.ExitStack() as made:
        used = MetricsFolder.create()
        made.callback(used.remove)
        assert not abandoned.exists()
        assert used.path.stat().st_mode & 0o777 == 0o700
        other = MetricsFolder.create()
        made.callback(other.remove)
        assert used.path.is_dir()
        assert other.path != used.path
    assert not used.path.exists()
    assert not other.path.exists()


def test_a_dead_worker_no_longer_runs_but_its_counts_stay() -> None:
    """Its gauges go with it."""
    folder = MetricsFolder.create()
    try:
        code = (
            "import sys; from pathlib import Path; from gateway.shared_metrics import MetricsFolder;"
            "from gateway.metrics import Metrics; folder = MetricsFolder(Path(sys.argv[1])); folder.join(1);"
            "metrics = Metrics(folder); metrics.disconnects.inc(3); metrics.workers.set(1);"
            "metrics.forwards.set_function(lambda: 7); metrics.sample(); folder.announce(1)"
        )
        subprocess.run([sys.executable, "-c", code, folder.path], cwd=ROOT, timeout=60, check=True)
        page = Metrics(folder).page
        assert list(folder.running()) == ["1"]
        assert page.get_sample_value("tracer_forwards") == 7
        assert page.get_sample_value("tracer_disconnects_total") == 3
        folder.forget(1)
        assert folder.running() == {}
        assert page.get_sample_value("tracer_disconnects_total") == 3
        assert page.get_sample_value("tracer_workers") == 0
        assert page.get_sample_value("process_open_fds", {"worker": "supervisor"})
    finally:
        folder.remove()


def test_a_gateway_alone_counts_in_its_own_memory() -> None:
    """Two in one process do not meet, and its process has no label."""
    one, other = Metrics(), Metrics()
    one.disconnects.inc()
    assert one.page.get_sample_value("tracer_disconnects_total") == 1
    assert other.page.get_sample_value("tracer_disconnects_total") == 0
    assert one.page.get_sample_value("process_open_fds")
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
