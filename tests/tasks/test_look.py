import numpy as np
import pytest
import torch

from datamodules.npz import Npz
from diffusion.metrics.duplicates import digests
from diffusion.tasks.look import SPLITS, look


@pytest.fixture
def data(tmp_path) -> Npz:
    rng = np.random.default_rng(0)
    arrays = {f"{s}_images": rng.integers(3, 250, (n, 9, 10, 3), dtype=np.uint8) for s, n in zip(SPLITS, (20, 6, 7))}  # noqa: B905
    arrays["val_images"][2] = 17
    np.savez(tmp_path / "data.npz", **arrays)
    return Npz(str(tmp_path / "data.npz"))


def test_all_images_are_seen_in_their_order(data):
    seen = look(data, 1000, 60)
    assert seen.part.tolist() == [0] * 20 + [1] * 6 + [2] * 7
    assert seen.row.tolist() == [*range(20), *range(6), *range(7)]
    images = torch.cat([data.split(name).images for name in SPLITS])
    assert seen.digests == digests(images)
    assert torch.equal(seen.counts, images.flatten().bincount(minlength=256)) and seen.counted == 33
    assert seen.constant.nonzero().flatten().tolist() == [22]
    assert torch.equal(seen.low, images.flatten(1).amin(1).long()) and torch.equal(seen.thumbs, images)


def test_a_part_is_drawn_and_the_same_one_again(data):
    seen, again = look(data, 10, 60, seed=1), look(data, 10, 60, seed=1)
    assert len(seen) == 10 and seen.digests == again.digests and seen.total == {"train": 20, "val": 6, "test": 7}
    whole = look(data, 1000, 60)
    known = dict(zip(zip(whole.part.tolist(), whole.row.tolist(), strict=True), whole.digests, strict=True))
    assert [known[place] for place in zip(seen.part.tolist(), seen.row.tolist(), strict=True)] == seen.digests
    assert look(data, 10, 60, seed=2).digests != seen.digests


def test_time_ends_the_look(data, monkeypatch):
    monkeypatch.setattr("diffusion.tasks.look.BLOCK_BYTES", 1)
    assert 0 < len(look(data, 1000, 0.0)) < 33


def test_sixteen_bits(tmp_path):
    class Deep:
        def split(self, name):
            from types import SimpleNamespace

            images = torch.tensor([[-32768, 32767], [0, 0]], dtype=torch.int16).reshape(2, 1, 1, 2).repeat(1, 1, 4, 2)
            return type("S", (SimpleNamespace,), {"__len__": lambda self: 2})(images=images)

    seen = look(Deep(), 1000, 60)
    assert seen.low.tolist() == [0, 32768] * 3 and seen.high.tolist() == [65535, 32768] * 3
    assert len(seen.counts) == 65536 and int(seen.counts[32768]) == 48
    assert seen.thumbs[0].unique().tolist() == [0, 255] and seen.constant.tolist() == [False, True] * 3
