"""Processes, and calls, that take turns on the same cores, so that their times compare although the machine drifts."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path


class Ended(RuntimeError):
    """A process that was to go on has ended; the message has what it said last."""


class Loop:
    """A process, with those that it starts, that prints the monotonic clock's seconds at the end of each step.

    Behind them it may print the bytes that it has had of a GPU at most.
    It is at work from the start until `pause`, and again in each turn, and its temporary files go with it. Raises
    Ended when it ends by itself.
    """

    def __init__(self, command: Sequence[str]):
        self.command, self.ends, self.turns, self.gpu_memory = command, [], [], None
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": self._folder.name},
        )
        self._errors: list[str] = []
        for read in (self._read_steps, self._read_errors):
            threading.Thread(target=read, daemon=True).start()

    def _read_steps(self) -> None:
        for line in self.process.stdout:
            words = line.split()
            if words and all(word.replace(".", "", 1).isdigit() for word in words):
                self.gpu_memory = int(words[1]) if len(words) > 1 else None
                self.ends.append(float(words[0]))

    def _read_errors(self) -> None:
        self._errors += list(self.process.stderr)

    def wait_for(self, steps: int) -> None:
        """Until so many steps are done."""
        while len(self.ends) < steps:
            self._check()
            time.sleep(0.01)

    def _check(self) -> None:
        if self.process.poll() is not None:
            raise Ended(f"{' '.join(self.command)} ended:\n{''.join(self._errors[-20:])}")

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Let it work for so long, and at least for two whole steps."""
        before, began = len(self.ends), time.monotonic()
        os.killpg(self.process.pid, signal.SIGCONT)
        while time.monotonic() - began < seconds or len(self.ends) < before + 3:
            self._check()
            time.sleep(0.01)
        self.pause()
        self.turns.append((began, time.monotonic()))

    @property
    def first_step(self) -> float:
        """Seconds from the command to the end of the first step."""
        return self.ends[0] - self.began

    def steps(self) -> list[float]:
        """Seconds of each step that began and ended in one turn."""
        return [
            after - before
            for begin, end in self.turns
            for before, after in pairwise(sorted(t for t in self.ends if begin < t < end))
        ]

    def peak_memory(self) -> int:
        """Bytes: of a GPU, if the process tells of it; else the most of the host's that it has had, and what its
        children have now, shared pages in equal parts.
        """
        if self.gpu_memory is not None:
            return self.gpu_memory
        own = 1024 * int(_of(self.process.pid, "status", "VmHWM")[0])
        running = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        others = [pid for pid in running if pid != self.process.pid and _session(pid) == self.process.pid]
        return own + sum(1024 * int((_of(pid, "smaps_rollup", "Pss") or ["0"])[0]) for pid in others)

    def close(self) -> None:
        for number in (signal.SIGKILL, signal.SIGCONT):
            # What it has started may go on, or wait, where it has ended itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        self.process.wait()
        self._folder.cleanup()


def _of(pid: int, file: str, name: str) -> list[str]:
    """The words behind NAME: in a file of /proc/PID; none where the process is gone."""
    try:
        lines = (Path("/proc") / str(pid) / file).read_text().splitlines()
    except OSError:
        return []
    return next((line.split()[1:2] for line in lines if line.startswith(f"{name}:")), [])


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def measure(commands: Mapping[str, Sequence[str]], turns: int, seconds: float, warm_up: int) -> dict[str, dict]:
    """Start each command alone, then let them take turns: of each, by name, what a step takes and the first one took.

    milliseconds: the median of all whole steps, beside their first and third quartile
    """
    loops: dict[str, Loop] = {}
    with _stopped_by_exception(), contextlib.ExitStack() as stack:
        for name, command in commands.items():
            loops[name] = Loop(command)
            stack.callback(loops[name].close)
            loops[name].wait_for(warm_up)
            loops[name].pause()
            _say(f"{name}: at work after {loops[name].first_step:.0f} s")
        began = time.monotonic()
        for turn in range(turns):
            for loop in loops.values():
                loop.turn(seconds)
            left = (time.monotonic() - began) * (turns / (turn + 1) - 1)
            _say(f"turn {turn + 1} of {turns}, {left:.0f} s left")
        return {
            name: {
                "milliseconds": 1000 * statistics.median(loop.steps()),
                "quartiles": [1000 * value for value in statistics.quantiles(loop.steps(), n=4)[::2]],
                "steps": len(loop.steps()),
                "first_step_seconds": loop.first_step,
                "peak_memory_bytes": loop.peak_memory(),
            }
            for name, loop in loops.items()
        }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stopped_by_exception() -> Iterator[None]:
    """SIGTERM, which would leave the paused processes where they are, ends the body as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Of each call, by name: the median of its seconds over so many turns of this process; one before warms up.

    A call lasts until a GPU, if there is one, has done what it was told.
    """
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}
