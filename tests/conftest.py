"""What all tests share."""

import gc
import os
from pathlib import Path

# The tensors of tests are so small that a second thread only waits, here and in the processes that tests start; two of
# them beside another process on two cores would make each other wait.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What is imported stays: the garbage collector, which would look through all of it again and again, need not."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """What is frozen at the end counts as leaked to some libraries, which say so."""
    gc.unfreeze()


@pytest.fixture
def shared_data():
    """A function from a file's name under shared/data to its path; the test is skipped where it is absent."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs {name}, which lies beside the repository only where it is developed")
        return SHARED / name

    return path
