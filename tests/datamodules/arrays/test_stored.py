import pickle

import numpy as np
import pytest
import torch

from datamodules.arrays.split import Split, eight_bits, unit_range
from datamodules.arrays.stored import Stored, blocks_of, runs
from datamodules.batch import DataError

ARRAY = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def stored(tmp_path) -> Stored:
    (tmp_path / "x.bin").write_bytes(b"head" + ARRAY.tobytes())
    return Stored(tmp_path / "x.bin", torch.uint8, ARRAY.shape, offset=4, channels_last=True)


WHOLE = torch.from_numpy(ARRAY).movedim(-1, 1)


def test_it_answers_as_the_tensor_would(stored):
    assert stored.shape == WHOLE.shape and len(stored) == 10 and stored.numel() == WHOLE.numel() and stored.ndim == 4
    for places in (3, slice(2, 7), slice(None), slice(8, 1, -3), torch.tensor([7, 7, 0, -1, 1]), torch.arange(3, 8)):
        expected = WHOLE[torch.arange(8, 1, -3)] if places == slice(8, 1, -3) else WHOLE[places]
        assert torch.equal(stored[places], expected)
    assert torch.equal(stored[torch.arange(10) > 6], WHOLE[7:]) and stored[torch.arange(0)].shape == (0, 3, 4, 5)
    assert torch.equal(stored.load(), WHOLE)


def test_a_part_stays_in_the_file(stored):
    part = stored.only(torch.tensor([8, 2, 5])).only(torch.tensor([2, 0]))
    assert isinstance(part, Stored) and torch.equal(part.load(), WHOLE[[5, 8]]) and part.shape == (2, 3, 4, 5)


def test_another_process_can_have_it(stored):
    stored[0]
    assert torch.equal(pickle.loads(pickle.dumps(stored))[4], WHOLE[4])


def test_blocks_hold_everything_in_order(stored, monkeypatch):
    monkeypatch.setattr("datamodules.arrays.stored.BLOCK_BYTES", 130)
    for values in (stored, WHOLE):
        blocks = list(blocks_of(values))
        assert [len(block) for block in blocks] == [2] * 5 and torch.equal(torch.cat(blocks), WHOLE)


def test_neighbours_are_read_at_once():
    assert list(runs([3, 4, 5, 9, 0, 1])) == [(0, 3, 3), (3, 9, 1), (4, 0, 2)]
    assert list(runs(range(2, 6))) == [(0, 2, 4)] and list(runs([])) == []


def test_a_file_that_changed_is_named(stored, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"x\.bin is shorter than when it was opened"):
        stored[9]
    (tmp_path / "x.bin").unlink()
    with pytest.raises(DataError, match=r"x\.bin cannot be read"):
        Stored(tmp_path / "x.bin", torch.uint8, (1, 1))[0]


def test_a_split_of_stored_images_gives_the_same_batches(stored):
    labels, indices = torch.arange(10), torch.tensor([9, 1, 1])
    here, there = Split(WHOLE, labels)[indices], Split(stored, labels)[indices]
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)
    assert torch.equal(Split(stored).eight_bit(5).images, WHOLE[::2]) and Split(stored).to("cpu").stored


def test_sixteen_bits_reach_both_ends_and_round_to_eight():
    levels = torch.arange(-32768, 32768).to(torch.int16)
    unit = unit_range(levels)
    assert unit[0] == -1 and unit[-1] == 1
    assert torch.allclose(unit.double(), torch.arange(65536).double() * 2 / 65535 - 1, atol=1e-6)
    assert torch.equal(eight_bits(levels).int(), (torch.arange(65536).double() / 257).round().int())
