"""What a signal to a sweep does to the processes of its trials."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from diffusion.apps.trials import NO_MORE, Trial
from diffusion.errors import Stopped


@contextmanager
def passed_on(trials: Sequence[Trial]) -> Iterator[None]:
    """Meanwhile SIGTERM, SIGUSR1 and SIGINT end the sweep: trials in other processes of this machine get a SIGTERM, no
    other begins, and the body is left to wait for them. Raises Stopped, at once where no other process is at work.
    """
    stop, received = trials[0].folder / NO_MORE, []

    def handle(number: int, frame: object) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)
        processes = [trial.read()["pid"] for trial in trials if trial.at_work]
        if not processes:
            raise Stopped(said())
        stop.touch()
        for process in processes:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, signal.SIGTERM)

    def said() -> str:
        return f"sweep stopped by {received[0]}: the same command goes on"

    stop.unlink(missing_ok=True)
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    except Exception as error:
        # The signal ends a trial that cannot save yet, and launchers make errors of processes that are gone.
        if received and not isinstance(error, Stopped):
            raise Stopped(said()) from error
        raise
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)
    if received:
        raise Stopped(said())
