"""The way of a tensor to the device that computes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, which may be of a GPU: the host then waits for nothing.

    A plain copy from the host's pageable memory would make it wait for all the work that is queued on the GPU.
    """
    if torch.device(device).type == "cuda" and value.device.type == "cpu" and not value.requires_grad:
        return value.to(dtype or value.dtype).pin_memory().to(device, non_blocking=True)
    return value.to(device, dtype)
