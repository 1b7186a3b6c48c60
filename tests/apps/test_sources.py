"""Every source trains and is sampled, end to end."""

import csv

import numpy as np
import pytest

from diffusion.apps import tasks
from tests.datamodules.sources import SOURCES
from tests.training import run_training

QUICK = ["trainer.max_steps=20", "trainer.log_every_n_steps=20", "trainer.validate_every_n_steps=20"]


def words_of(keys: dict) -> list[str]:
    dataset = keys.pop("dataset")
    return [f"dataset={dataset}", *(f"dataset.{key}={value}" for key, value in keys.items())]


@pytest.mark.slow
@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("digits", "npz")])
def test_a_source_trains_and_is_sampled(source, tmp_path):
    run = run_training(tmp_path, *QUICK, *words_of(SOURCES[source](tmp_path)))
    sampled(run, n=2)
    if (run / "splits.csv").exists():
        with (run / "splits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == (5 if source.startswith(("dicom", "nifti")) else 32) and {row["split"] for row in rows} == {
            "train",
            "val",
            "test",
        }


def sampled(run, n: int) -> np.ndarray:
    tasks.main(["sample", f"run={run}", f"n={n}", "device=cpu", "grid.steps=2"])
    with np.load(run / "sample" / "samples.npz") as samples:
        assert len(samples["images"]) == n and samples["images"].dtype == np.uint8
        return samples["images"]


REAL = {
    "leukemia_pixel": ("bccd/wbc_crops", ["dataset.path=PATH", "dataset.size=32"], (32, 32, 3)),
    "mnist_pixel": ("mnist", ["dataset.root=PATH", "dataset.t10k_only=true", "dataset.download=false"], (28, 28, 1)),
    "adrenal_pixel": ("medmnist", ["dataset.root=PATH", "dataset.download=false"], (28, 28, 28, 1)),
    "tissue_pixel": (
        "segmentation_wbc",
        ["dataset=masks", "dataset.path=PATH", "dataset.images='*.bmp'", "dataset.masks='*.png'", "dataset.size=32"],
        (32, 32, 3),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", REAL)
def test_real_files(experiment, shared_data, tmp_path):
    name, words, shape = REAL[experiment]
    path = shared_data(name)
    words = [word.replace("PATH", str(path)) for word in words]
    cache = [] if experiment == "mnist_pixel" else [f"dataset.cache={tmp_path / 'cache'}"]
    base = [f"experiment={experiment}", "accelerator=cpu", "network.channels=8", "batch_size=4", "grid.steps=2"]
    limits = ["trainer.max_time=null", *QUICK]
    run = run_training(tmp_path, *words, *cache, *limits, "callbacks.previews.n=2", base=base)
    assert sampled(run, n=2).shape == (2, *shape)


@pytest.mark.slow
def test_sixteen_bits_on_the_disk_are_judged_as_samples_are(tmp_path):
    run = run_training(tmp_path, *QUICK, *words_of(SOURCES["nifti patches on disk"](tmp_path)))
    common = [f"run={run}", "extractor=random", "device=cpu"]
    tasks.main(["evaluate", *common, "n=20", "grid.steps=2"])
    tasks.main(["audit", *common, "n=20", "members=10", "grid.steps=2"])
    tasks.main(["report", f"run={run}", "n=2", "device=cpu"])
    assert (run / "evaluate" / "metrics.json").is_file() and (run / "audit" / "metrics.json").is_file()
    assert "generated" in (run / "report.html").read_text()


@pytest.mark.slow
def test_latents_of_class_folders_on_the_disk(tmp_path):
    data = words_of(SOURCES["folder on disk"](tmp_path))
    limits = ["accelerator=cpu", "batch_size=4", "trainer.max_time=null", *QUICK]
    base = ["experiment=leukemia_vae", "model.network.channels=8", "perceptual=none", "callbacks.reconstructions.n=2"]
    first = run_training(tmp_path, *data, *limits, base=base)
    tasks.main(["reconstruct", f"run={first}", "classifier=false", "device=cpu"])
    base = ["experiment=leukemia_latent", "network.channels=8", "network.multipliers=[1]", f"codec.run={first}"]
    run = run_training(tmp_path, *data, *limits, "callbacks.previews.n=2", "grid.steps=2", base=base)
    assert sampled(run, n=2).shape == (2, 16, 16, 3)
