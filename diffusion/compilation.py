"""Networks as torch.compile makes them faster, where it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from diffusion.errors import UserError

MODES = ("default", "reduce-overhead", "max-autotune")

REFUSALS = {"BackendCompilerFailed", "TritonMissing"}
"""torch's errors where what compiles is missing or fails."""


def check_mode(mode: str | None, key: str) -> None:
    """Raises UserError, naming `key`, unless the mode is one of MODES, or None."""
    if mode is not None and mode not in MODES:
        raise UserError(f"{key}={mode}: give {', '.join(MODES[:-1])} or {MODES[-1]}, or null for none of it")


@contextmanager
def compiled(networks: Sequence[nn.Module], mode: str | None, key: str) -> Iterator[None]:
    """Have torch compile the networks, in place, for a body that calls them; with mode None they stay as they are.

    Their parameters keep their names. From the second size of a batch on its size is a symbol: a short last batch,
    or the doubled one of guidance, is not compiled again; one image, other conditions and training are. mode: one
    of MODES, as torch.compile has them; reduce-overhead records CUDA graphs. Results differ from those without by
    rounding. Raises UserError, naming `key`, where torch cannot compile: it needs a compiler of the system.
    """
    if mode is None:
        yield
        return
    for network in networks:
        network.compile(mode=None if mode == "default" else mode)
    try:
        yield
    except RuntimeError as error:
        # The classes themselves are torch's own, and take seconds to import.
        if not any(each.__name__ in REFUSALS for each in type(error).__mro__):
            raise
        reason = next(line for line in reversed(str(error.__cause__ or error).splitlines()) if line.strip())
        raise UserError(
            f"{key}={mode}: torch cannot compile the network here ({reason.strip()}); leave it out"
        ) from error
    finally:
        for network in networks:
            network._compiled_call_impl = None  # torch has no word for the way back
        # Other runs may follow in this process, and what torch keeps for all of them is bounded.
        torch.compiler.reset()
