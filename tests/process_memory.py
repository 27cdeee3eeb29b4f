"""What the operating system says of a process's memory and time, in MB and seconds. Linux only."""

import os
from pathlib import Path

import pytest

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")


def resident(pid: int) -> float:
    """Resident memory, shared pages counted in full."""
    return _sum(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Rss:")


def anonymous(pid: int) -> float:
    """Memory that is no file's: what is allocated. Code comes and goes as it is called."""
    return _sum(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Anonymous:")


def of_mapping(pid: int, name: str) -> tuple[float, float]:
    """(resident, own share) of the mappings whose file's path contains `name`: of a page of two each has half."""
    mappings = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:")
    text = "\n".join(mapping for mapping in mappings if name in mapping)
    return _sum(text, "Rss:"), _sum(text, "Pss:")


def n_mappings(pid: int, name: str) -> int:
    """How many mappings there are of files whose path contains `name`."""
    return sum(name in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())


def cpu_seconds(pid: int) -> float:
    """Processor time that the process has used, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _sum(text: str, key: str) -> float:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(key)) / 1024
