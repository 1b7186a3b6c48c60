"""Who has started this process, what it was told, and which of those that work on one run it is.

Imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from diffusion.apps.cli import EXIT_STOPPED

SWEEP, DRIVER = "MED_DIFFUSION_SWEEP", "MED_DIFFUSION_SWEEP_DRIVER"
"""Tell the trials of a sweep or of a study its folder, and those of a sweep the process that began it."""
RUN_LOCK = ".lock"
"""In the directory of a run, held by the first process that is at work in it."""
PARENT = os.getppid()
"""The process that started this one, while it lives."""
RUN_ID = "MED_DIFFUSION_RUN_ID"
"""Tells the processes that Lightning starts for one run its id."""


def first_process() -> bool:
    """Whether this is the process, of those that train one run together, that writes its files."""
    names = ["RANK", "LOCAL_RANK", "NODE_RANK", *(["SLURM_PROCID"] if started_by_srun() else [])]
    return all(os.environ.get(name, "0") == "0" for name in names)


def started_by_srun() -> bool:
    """Whether Slurm has started several processes; in a plain batch script it numbers the only one."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def launched() -> int:
    """How many processes torchrun or srun has started for this command; 1 where nobody has."""
    return int(os.environ["SLURM_NTASKS"] if started_by_srun() else os.environ.get("WORLD_SIZE", "1"))


def job_id() -> str | None:
    """The number of the Slurm job that this process belongs to, ARRAY_TASK in a job array; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def end_with_parent() -> None:
    """Let the system send SIGTERM when the process that started this one ends, be it by SIGKILL; on Linux alone."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def end_without_parent() -> None:
    """End this process if the one that started it is gone: nobody would take what it gives back."""
    if os.getppid() != PARENT:
        os._exit(EXIT_STOPPED)
