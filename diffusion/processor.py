"""The threads and the memory of this process, set to what the machine grants it.

torch is imported where it is used: who asks for the cores alone need not wait for it.
"""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

KEPT = 2**30
"""Bytes at the top of the heap that are not given back to the system between two steps."""


def settle() -> None:
    """Let torch use no more threads than there are cores for it, and let freed tensors be used again.

    Memory: glibc maps each large block by itself and gives it back to the system when it is freed, so that every step
    of training begins with thousands of page faults; it is told to map none and to keep them, unless the environment
    tells it how (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_). Other C libraries are left as they are.
    """
    limit_threads()
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(libc, "gnu_get_libc_version"):
        trim_threshold, mmap_max = -1, -4  # <malloc.h>
        for name, parameter, value in (("MMAP_MAX", mmap_max, 0), ("TRIM_THRESHOLD", trim_threshold, KEPT)):
            if f"MALLOC_{name}_" not in os.environ:
                libc.mallopt(parameter, value)


def limit_threads() -> None:
    """Let torch, which counts real cores but knows of no quota, use no more threads than there are cores for it.

    Unless OMP_NUM_THREADS says how many.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def cores() -> int:
    """How many cores this process may keep busy: those it may run on, and no more than its container's quota."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(mine, quota()))


def quota(root: Path = Path("/")) -> float:
    """Seconds of processor time per second that the control groups of this process allow; inf where none limits it.

    root: the folder that holds proc/ and sys/
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    found = [math.inf]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, read = root / "sys/fs/cgroup", _quota_2
        elif "cpu" in controllers.split(","):
            top, read = root / "sys/fs/cgroup" / controllers, _quota_1
        else:
            continue
        # Each group limits those within it. A container may see its own group as the top.
        inner = top / path.lstrip("/")
        found += [read(group) for group in (inner, *inner.parents) if group.is_relative_to(top)]
    return min(found)


def _quota_2(group: Path) -> float:
    """Of version 2: cpu.max holds QUOTA PERIOD in microseconds, or max PERIOD."""
    try:
        allowed, period = (group / "cpu.max").read_text().split()
        return math.inf if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_1(group: Path) -> float:
    """Of version 1: microseconds, -1 where there is no limit."""
    try:
        allowed, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return allowed / period if allowed > 0 and period > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
