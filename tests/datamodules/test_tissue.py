import numpy as np
import pytest
import torch
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from datamodules.batch import DataError, DataSpec
from datamodules.tissue import BANDS, Tissue, reduce


@pytest.fixture(scope="module")
def tissue() -> Tissue:
    return Tissue()


def test_counts_and_classes(tissue):
    assert tissue.spec == DataSpec((3, 28, 28), 3, ("low DAB", "middle DAB", "high DAB"), mask_classes=2)
    # (band height / 2 - 28) / 2 + 1 rows of windows, (512 / 2 - 28) / 2 + 1 columns of them
    assert {name: len(tissue.split(name)) for name in BANDS} == {
        "train": 67 * 115,
        "val": 11 * 115,
        "test": 11 * 115,
    }
    counts = tissue.split("train").labels.bincount()
    assert counts.max() - counts.min() <= 1
    for name in ("val", "test"):
        assert tissue.split(name).labels.bincount(minlength=3).min() >= 50


def test_the_bands_share_no_row_of_the_photograph():
    rows = [row for start, stop in BANDS.values() for row in range(start, stop)]
    assert sorted(rows) == list(range(512))


@pytest.mark.parametrize("name", BANDS)
def test_every_window_is_cut_from_its_own_band(tissue, name):
    photo = immunohistochemistry().astype(np.float64)
    images = tissue.split(name).images.numpy()
    columns = 115
    start, stop = BANDS[name]
    for index in (0, 1, columns - 1, columns, len(images) // 2, len(images) - 1):
        top, left = start + index // columns * 4, index % columns * 4
        window = photo[top : top + 56, left : left + 56]
        assert start <= top and top + 56 <= stop and window.shape == (56, 56, 3)
        means = window.reshape(28, 2, 28, 2, 3).mean(axis=(1, 3))
        assert np.abs(images[index] - means.transpose(2, 0, 1)).max() <= 0.5


def test_labels_and_masks_follow_the_stain(tissue):
    train = tissue.split("train").take(torch.arange(0, 67 * 115, 8))
    dab = rgb2hed(train.images.movedim(1, -1).numpy())[..., 2]
    means = torch.from_numpy(dab.mean(axis=(1, 2)))
    by_class = [means[train.labels == label] for label in range(3)]
    assert by_class[0].max() <= by_class[1].min() and by_class[1].max() <= by_class[2].min()
    marked = train.masks[:, 0].numpy() == 1
    assert dab[~marked].max() <= dab[marked].min()
    assert 0.3 < marked.mean() < 0.7


def test_the_test_split_is_judged_by_the_training_thirds(tissue):
    means = [
        rgb2hed(tissue.split(n).images.movedim(1, -1).numpy())[..., 2].mean(axis=(1, 2)) for n in ("train", "test")
    ]
    low, high = np.quantile(means[0], [1 / 3, 2 / 3])
    expected = (means[1] > low).astype(int) + (means[1] > high)
    assert np.array_equal(tissue.split("test").labels.numpy(), expected)


def test_reduce_takes_the_mean_of_blocks():
    photo = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5, 1)
    assert reduce(photo, 2).tolist() == [[[3], [5]]]
    assert np.array_equal(reduce(photo, 1), photo)


def test_other_sizes():
    data = Tissue(size=33, scale=1, stride=40)
    assert data.spec.shape == (3, 33, 33) and len(data.split("val")) == 2 * 12
    assert Tissue(size=48, stride=30).spec.shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 49}, "choose dataset.size up to 48, or a smaller dataset.scale"),
        ({"size": 97, "scale": 1}, "choose dataset.size up to 96$"),
        ({"size": 0}, "size=0"),
        ({"stride": 0}, "stride=0"),
        ({"scale": 0}, "scale=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        Tissue(**options)
