"""What holds for every source."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from diffusion.apps.config import choice_of
from tests.datamodules.sources import SOURCES

pytestmark = pytest.mark.slow

BATCH, STEPS = 4, 12


@pytest.fixture(scope="module", params=SOURCES)
def made(request, tmp_path_factory):
    """A function from options to the data module of a source."""
    keys = SOURCES[request.param](tmp_path_factory.mktemp("source"))
    node = choice_of("dataset", keys.pop("dataset"))

    def make(**options):
        return instantiate({**node, **keys, **options}, batch_size=BATCH, _convert_="all")

    return make


def stream(data, steps: int, start: int = 0, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """The samples of each step, as the Trainer would have them."""
    place = {"global_step": start, "global_rank": rank, "world_size": world_size, "accumulate_grad_batches": 1}
    data.trainer = SimpleNamespace(**place, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    return [batch["id"].tolist() for batch in islice(iter(data.train_dataloader()), steps)]


def test_the_order_hangs_on_seed_and_epoch_alone(made):
    whole = stream(made(), STEPS)
    for workers in (0, 1, 3):
        data = made(workers=workers)
        assert stream(data, STEPS) == whole
        assert stream(data, STEPS - 5, start=5) == whole[5:], "a run that goes on"
        halves = [stream(data, STEPS, rank=rank, world_size=2) for rank in (0, 1)]
        assert [a + b for a, b in zip(*halves, strict=True)] == whole, "two processes"
    assert stream(made(seed=1), STEPS) != whole
    n = len(made().split("train"))
    first_epoch = [i for step in stream(made(), -(-n // BATCH)) for i in step][:n]
    assert sorted(first_epoch) == list(range(n))


def test_samples_are_the_same_however_they_are_read(made):
    here, there = made(), made(workers=1)
    for ours, theirs in zip(islice(iter(here.train_dataloader()), 3), there.train_dataloader(), strict=False):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert here.fingerprint() == there.fingerprint() and here.std() == there.std()
    seen = torch.cat([batch["id"] for batch in there.test_dataloader()])
    assert seen.tolist() == list(range(len(here.split("test"))))


def test_names_are_as_many_as_samples(made):
    data = made()
    for split in ("train", "val", "test"):
        assert data.names is None or len(data.names[split]) == len(data.split(split)) == len(set(data.names[split]))
