"""Where a figure comes from: the code, the machine, the day."""

from __future__ import annotations

import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

from diffusion.processor import cores

PACKAGES = ("torch", "pytorch-lightning", "hydra-core")


def machine() -> dict[str, object]:
    """Processor, cores, accelerator, versions and the date."""
    import torch

    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "processor": processor,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "date": date.today().isoformat(),
    }


def code() -> dict[str, str | None]:
    """The version of this package, and the commit that it runs from: "-changed" where files differ from it.

    The commit is None where the package was installed without its history, or git is absent.
    """
    from diffusion import __version__

    return {"version": __version__, "commit": _commit(Path(__file__).resolve().parents[1])}


def _commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("-changed" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
