import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.turns import Loop, in_turns, measure


def steps_of(seconds: float, memory: int = 0) -> list[str]:
    """A process whose steps last so long, and that keeps so many bytes."""
    program = f"""if True:
        import time
        kept = b"x" * {memory}
        while True:
            time.sleep({seconds})
            print(time.monotonic(), flush=True)
    """
    return [sys.executable, "-c", program]


def test_a_step_counts_where_it_began_and_ended_in_one_turn():
    loop = object.__new__(Loop)
    loop.ends, loop.turns = [0.5, 1.5, 1.7, 2.0, 6.1, 6.4, 9.0], [(1.0, 2.1), (6.0, 7.0)]
    assert loop.steps() == pytest.approx([0.2, 0.3, 0.3])


@pytest.mark.slow
def test_processes_take_turns():
    found = measure({"short": steps_of(0.01), "long": steps_of(0.1, 2**27)}, turns=2, seconds=0.5, warm_up=2)
    short, long = found["short"], found["long"]
    assert 10 <= short["milliseconds"] < 100 <= long["milliseconds"]
    assert 4 <= long["steps"] <= 10 < short["steps"] <= 100
    assert long["peak_memory_bytes"] - short["peak_memory_bytes"] == pytest.approx(2**27, rel=0.1)
    assert 0 < short["first_step_seconds"] < 60


def test_a_process_tells_what_it_has_had_of_a_gpu():
    program = "import time; print('1.5 100', flush=True); print('2.5 300', flush=True); time.sleep(60)"
    loop = Loop([sys.executable, "-c", program])
    try:
        loop.wait_for(2)
        assert loop.ends == [1.5, 2.5] and loop.peak_memory() == 300
    finally:
        loop.close()


def test_a_paused_process_makes_no_steps_and_its_pause_belongs_to_none():
    loop = Loop(steps_of(0.01))
    try:
        loop.wait_for(2)
        loop.pause()
        for _ in range(2):
            loop.turn(0.1)
        (_, ended), (began, _) = loop.turns
        assert not [end for end in loop.ends if ended < end < began]
        assert len(loop.steps()) < len(loop.ends) - 1
    finally:
        loop.close()
    assert loop.process.returncode == -signal.SIGKILL


def test_what_a_process_has_started_goes_with_it():
    """Here the process has ended itself, and its child, paused, has not."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); sys.exit(1)"
    loop = Loop([sys.executable, "-c", program])
    while not loop.ends:
        time.sleep(0.01)
    loop.process.wait()
    loop.pause()
    loop.close()
    status = Path(f"/proc/{loop.ends[0]:.0f}/status")
    until = time.monotonic() + 30
    while status.exists() and "zombie" not in status.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_calls_take_turns():
    said = []
    found = in_turns({"a": lambda: said.append("a"), "b": lambda: (said.append("b"), time.sleep(0.02))}, turns=2)
    assert said == ["a", "b"] * 3
    assert found["a"] < 0.02 <= found["b"]


def test_a_process_that_ends_is_told_with_its_last_words():
    command = [sys.executable, "-c", "import sys; sys.exit('no such data')"]
    with pytest.raises(RuntimeError, match="no such data"):
        measure({"broken": command}, turns=1, seconds=0.1, warm_up=1)
