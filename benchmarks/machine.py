"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version


def machine() -> dict[str, object]:
    """Processor, cores, accelerator, versions and the date."""
    import torch

    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    packages = ("torch", "pytorch-lightning", "hydra-core")
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": date.today().isoformat(),
    }
