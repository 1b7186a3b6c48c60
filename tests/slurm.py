"""A Slurm of one node on this machine, for as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=60 State=UP PriorityTier=10
"""


def missing() -> str | None:
    """Why no Slurm can be had here, or None."""
    if os.geteuid() != 0:
        return "only root can start Slurm"
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if shutil.which(name) is None]
    return f"needs Debian's slurm-wlm and munge ({', '.join(absent)} not found)" if absent else None


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A node of two processors, partitions `low` and `high`, of which the second takes jobs of the first away."""
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    values = {"host": socket.gethostname().split(".")[0], "folder": folder, "control": free_port(), "node": free_port()}
    (folder / "slurm.conf").write_text(CONF.format(**values))
    munge = None
    if subprocess.run(["munge", "-n"], capture_output=True).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        munge = subprocess.Popen(["munged", "--force", "--foreground"], stderr=subprocess.DEVNULL)
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            daemons.append(subprocess.Popen([name, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        deadline = time.monotonic() + 30
        while "idle" not in said("sinfo", "--noheader", "--format=%T"):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        yield
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--user=root"], capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(20)
        if munge:
            munge.terminate()
            munge.wait(20)
        del os.environ["SLURM_CONF"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def said(*command: str) -> str:
    """What a command of Slurm's prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def jobs(*states: str) -> list[str]:
    """The numbers of the jobs in one of these states, of partition low."""
    lines = said("squeue", "--noheader", "--partition=low", f"--states={','.join(states)}", "--format=%A")
    return lines.split()


def at_once() -> None:
    """Let jobs that were put back into the queue begin without the pause that Slurm makes."""
    for job in jobs("PENDING"):
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], capture_output=True)
