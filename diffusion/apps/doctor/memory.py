"""What training takes of memory: measured, and by what it is for."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """The most memory since it was made, in bytes: of a GPU what torch holds, else what the process has resident."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
            return
        # What was freed, and not given back to the system, would hide what the steps take.
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            REFERENCES.write_text("5")  # Linux forgets the peak that it knows
        self.before = _resident("VmRSS")

    def now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")


def _resident(key: str) -> int:
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
    except (OSError, StopIteration):
        # Elsewhere only the highest ever is known; macOS counts it in bytes.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def held(module: nn.Module, optimizer: torch.optim.Optimizer, averaged: dict[str, torch.Tensor]) -> dict[str, int]:
    """Bytes of the parameters and of all that is kept for each of them."""
    trained = [p for p in module.parameters() if p.requires_grad]
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "parameters": _bytes(list(module.parameters())),
        "gradients": _bytes(trained),
        "optimizer": _bytes(states),
        "averaged": _bytes(list(averaged.values())),
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
