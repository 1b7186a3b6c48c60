import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.tasks.doctor_figure import MOST_ROWS, Pair, save_figure, shortened

pytestmark = pytest.mark.slow


def picture(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 8, 8), (1, 9, 10, 11), (4, 16, 16)])
@pytest.mark.parametrize("classes", [0, 1, 2, 30])
def test_it_is_drawn_for_any_images_and_classes(shape, classes, tmp_path):
    names = [f"a class with a long name {k}" for k in range(classes)]
    pair = Pair((picture(shape), picture(shape, 1)), ("train/a/1.png", "x" * 80), "exactly alike")
    save_figure(
        "title",
        {name: picture((5, *shape)) for name in names or ["images"]},
        {name: {"train": 3 + k, "val": 1, "test": 2} for k, name in enumerate(names)},
        ([1.0, 2.0, 3.0], [0.2, 0.0, 0.8]),
        [1.0, 0.5, 0.2],
        [pair] * 9,
        tmp_path / "doctor.png",
    )
    with Image.open(tmp_path / "doctor.png") as image:
        assert 1000 < image.width < 1400 and 400 < image.height < 1800
        assert np.asarray(image.convert("L")).std() > 10
    assert MOST_ROWS < 30


def test_it_is_drawn_where_there_is_nothing(tmp_path):
    save_figure("title", {}, {}, ([], []), [], [], tmp_path / "doctor.png")
    assert (tmp_path / "doctor.png").stat().st_size > 1000


def test_a_long_name_keeps_its_end():
    assert shortened("train/class/image_0001.png", 12) == "…ge_0001.png" and shortened("short", 12) == "short"
