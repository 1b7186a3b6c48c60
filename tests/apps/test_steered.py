"""Runs that make images for masks, and masks of images: trained, sampled for test masks and for a folder's, judged."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from datamodules.arrays.split import SPLITS
from datamodules.masks import Masks
from diffusion.apps.conditions import Asked, adherence, read_masks, save_pairs
from diffusion.apps.output import mask_levels
from diffusion.errors import UserError
from diffusion.runs import Run
from diffusion.tasks.segment import Segmenter
from tests.commands import diffusion, refusal, train_py
from tests.training import SHORT

pytestmark = pytest.mark.slow

TINY = [*SHORT, "network=tiny", "network.channels=8", "batch_size=8", "callbacks.previews.n=4", "grid.steps=2"]


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """24 grey pictures of 16 x 16 with a bright disc each, and masks of 0 and 255 that say where."""
    folder = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(24):
        y, x, r = rng.uniform(5, 11), rng.uniform(5, 11), rng.uniform(2, 4)
        rows, columns = np.mgrid[:16, :16]
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= r**2
        picture = np.where(disc, 220, 30) + rng.integers(-20, 20, (16, 16))
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{i:02d}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(folder / "masks" / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def runs(discs, tmp_path_factory):
    """By name: a model that is told masks by concatenation, one of masks, and a segmenter."""
    folder = tmp_path_factory.mktemp("runs")
    data = ["dataset=masks", f"dataset.path={discs}", "dataset.size=16", f"dataset.cache={folder}/cache"]
    kinds = {
        "told": ["experiment=leukemia_pixel", "control=mask"],
        "masks": ["experiment=wbc_segmentation"],
        "bits": ["experiment=wbc_segmentation", "codec=analog_bits"],
        "segmenter": ["experiment=wbc_segmenter"],
    }
    for name, words in kinds.items():
        own = [word for word in TINY if name != "segmenter" or not word.startswith(("grid", "callbacks.previews"))]
        train_py(*words, *data, *own, "trainer.max_steps=3", f"run_id={name}", f"runs_dir={folder}")
    return {name: next(folder.glob(f"*/{name}")) for name in kinds}


def test_sampled_for_the_masks_of_test_images(runs, discs, tmp_path):
    out = tmp_path / "out"
    diffusion("sample", f"run={runs['told']}", "n=4", f"out={out}", f"segmenter={runs['segmenter']}")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["controls"] == "test images"
    assert {"asked", "shuffled"} == metrics["adherence"].keys()
    assert 0 <= metrics["adherence"]["asked"]["mean_dice"]["value"] <= 1
    assert (out / "steered.png").is_file()
    run = Run.open(runs["told"])
    masks = [np.asarray(Image.open(path)) for path in sorted((out / "pairs" / "masks").iterdir())]
    truth = {np.asarray(Image.open(path)).tobytes() for path in (discs / "masks").iterdir()}
    assert len(masks) == 4 and all(mask.tobytes() in truth for mask in masks)
    again = ["dataset=masks", f"dataset.path={out}/pairs", "dataset.size=16", "dataset.values=[0,255]"]
    train_py(
        "experiment=wbc_segmenter", *again, *SHORT, "batch_size=2", "trainer.max_steps=1", f"runs_dir={tmp_path}/runs"
    )
    assert run.spec.mask_classes == 2


def test_sampled_for_a_folder_of_masks(runs, discs, tmp_path):
    out = tmp_path / "out"
    diffusion("sample", f"run={runs['told']}", "n=3", f"out={out}", f"conditions={discs}/masks")
    wanted = [np.asarray(Image.open(discs / "masks" / f"0{i}.png")) for i in range(3)]
    found = [np.asarray(Image.open(path)) for path in sorted((out / "pairs" / "masks").iterdir())]
    assert all(np.array_equal(*pair) for pair in zip(wanted, found, strict=True))
    with np.load(out / "samples.npz") as arrays:
        assert arrays["images"].shape == (3, 16, 16, 1)


class Threshold(Segmenter):
    """Finds what is bright."""

    random = False

    def draw(self, images, seeds):
        return torch.cat([images <= 0, images > 0], 1).float()


def test_adherence_is_1_where_a_model_obeys_and_that_of_others_where_it_does_not_listen(runs):
    """Four masks: two of the upper half, and two of the lower, so that masks of others fit or do not at all."""
    run = Run.open(runs["told"])
    masks = torch.zeros(4, 16, 16, dtype=torch.int64)
    masks[:2, :8], masks[2:, 8:] = 1, 1
    control = run.model.control(run.spec)
    asked = Asked(control, control({"mask": masks[:, None]}), masks, None, None, "here")
    images = (255 * masks[:, None]).to(torch.uint8)
    config = OmegaConf.create({"seed": 0, "batch_size": 3})
    figures, found = adherence(Threshold(), images, asked, config, torch.device("cpu"))
    assert torch.equal(found, masks) and figures["asked"]["mean_dice"]["value"] == 1
    # However four are shuffled without any staying, as many get the other of their kind: 0, 2 or 4.
    assert figures["shuffled"]["mean_dice"]["value"] in (0, 0.5, 1)
    upper = images[:1].expand(4, -1, -1, -1)
    figures, _ = adherence(Threshold(), upper, asked, config, torch.device("cpu"))
    assert figures["asked"]["mean_dice"]["value"] == figures["shuffled"]["mean_dice"]["value"] == 0.5


@pytest.mark.parametrize("classes", [2, 3, 5, 20])
def test_pairs_are_read_as_they_were_asked_for(classes, tmp_path):
    masks = torch.randint(0, classes, (4, 8, 8), generator=torch.Generator().manual_seed(0))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "stale.png").touch()
    save_pairs(tmp_path / "pairs", images, masks, classes)
    assert {path.name for path in (tmp_path / "pairs").iterdir()} == {"images", "masks"}
    options = {"size": 8, "values": mask_levels(classes), "cache": str(tmp_path / "cache")}
    data = Masks(path=str(tmp_path / "pairs"), **options)
    found = {image.numpy().tobytes(): mask for split in SPLITS for image, mask in _pairs(data.split(split))}
    assert len(found) == 4
    assert all(torch.equal(found[i.numpy().tobytes()], m) for i, m in zip(images, masks, strict=True))


def _pairs(split):
    return zip(split.images, split.masks[:, 0].long(), strict=True)


@pytest.mark.parametrize("name", ["masks", "bits"])
def test_masks_are_drawn_of_images(runs, name, tmp_path):
    diffusion("segment", f"run={runs[name]}", "samples=3", f"out={tmp_path}/out")
    with np.load(tmp_path / "out" / "masks.npz") as arrays:
        assert arrays["masks"].shape[1:] == (16, 16) and arrays["masks"].max() <= 1
    assert any((runs[name] / "samples").glob("step_*.png"))


def test_masks_of_a_folder_are_read_as_classes(runs, tmp_path):
    run = Run.open(runs["told"])
    Image.fromarray(np.pad(np.ones((8, 16), np.uint8), ((8, 0), (0, 0)))).save(tmp_path / "a.png")
    Image.fromarray(np.pad(np.full((4, 8), 1, np.uint8), ((4, 0), (0, 0)))).save(tmp_path / "b.png")
    masks = read_masks(tmp_path, run)
    wanted = torch.zeros(16, 16, dtype=torch.int64)
    wanted[8:] = 1
    assert torch.equal(masks, torch.stack([wanted, wanted]))
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(UserError, match="holds 7"):
        read_masks(tmp_path, run)


def test_refusals(runs, discs, capfd, tmp_path):
    told, out = f"run={runs['told']}", f"out={tmp_path}/out"
    assert "conditions" in refusal(capfd, diffusion, "sample", told, out, "n=2", "conditions=/nowhere")
    assert "segmenter" in refusal(capfd, diffusion, "sample", told, out, "n=2", "segmenter=/nowhere")
    assert "finds no masks" in refusal(capfd, diffusion, "sample", told, out, "n=2", f"segmenter={runs['told']}")
    assert "control_scale" in refusal(capfd, diffusion, "sample", told, out, "n=2", "control_scale=2.0")
    assert "segment" in refusal(capfd, diffusion, "sample", f"run={runs['masks']}", out)
    for to in ("diffusers", "safetensors", "onnx"):
        assert "for a control" in refusal(capfd, diffusion, "export", told, out, f"to={to}")
    assert "only `sample`" in refusal(capfd, diffusion, "evaluate", told, out)
    assert not (tmp_path / "out").exists()
    data = ["dataset=masks", f"dataset.path={discs}", "dataset.size=16", f"runs_dir={tmp_path}"]
    words = ["experiment=wbc_segmentation", *data, *TINY, "trainer.max_steps=1"]
    assert "control=image" in refusal(capfd, train_py, *words, "control=none")
    assert "codec=one_hot" in refusal(capfd, train_py, *words, "codec=identity")
    assert "mask_ddpm" in refusal(capfd, train_py, "experiment=digits_pixel", "codec=one_hot", f"runs_dir={tmp_path}")
    assert "masks" in refusal(capfd, train_py, "experiment=wbc_segmentation", "dataset=digits", f"runs_dir={tmp_path}")
