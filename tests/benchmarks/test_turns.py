import signal
import sys

import pytest

from benchmarks.turns import Loop, measure


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


def test_steps_are_timed_although_the_processes_take_turns():
    found = measure({"short": steps_of(0.01), "long": steps_of(0.03, 2**27)}, turns=3, seconds=0.3, warm_up=2)
    short, long = found["short"], found["long"]
    assert long["milliseconds"] / short["milliseconds"] == pytest.approx(3, rel=0.2)
    # Of 0.9 seconds each has its own, less a step that the end of a turn cuts.
    assert 9 <= long["steps"] <= 30 < short["steps"] <= 90
    assert long["peak_memory_bytes"] - short["peak_memory_bytes"] == pytest.approx(2**27, rel=0.1)
    assert 0 < short["first_step_seconds"] < 60


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


def test_a_process_that_ends_is_told_with_its_last_words():
    command = [sys.executable, "-c", "import sys; sys.exit('no such data')"]
    with pytest.raises(RuntimeError, match="no such data"):
        measure({"broken": command}, turns=1, seconds=0.1, warm_up=1)
