"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Tests share the machine's cores with the processes that they start.
torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture
def shared_data():
    """A function from a file's name under shared/data to its path; the test is skipped where it is absent."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs {name}, which lies beside the repository only where it is developed")
        return SHARED / name

    return path
