"""The signals with which a cluster, or a user, asks a run to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from diffusion.errors import Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class StopSignals:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT came, for the training loop to act on at the next settled moment.

    A second SIGINT interrupts at once; and so does any signal, by Stopped, while `at_once` holds: before training there
    is nothing to settle. Leaving the context gives the signals back to whom they belonged; but where training was
    stopped it ends the process, in its own time: torchrun sends SIGTERM when the first of several has ended.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = False
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is Stopped:
            return
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Take over the signals; in another thread than the main one nothing can be done."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if self.at_once:
            raise Stopped(
                f"stopped by {self.received.name} before the first step; the same command begins again, or goes on"
            )
