"""`python -m diffusion anomaly` on runs of two steps, and dataset.only in training."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score, roc_auc_score

from diffusion.apps import tasks
from tests.apps.test_sample import lively, npz_run
from tests.commands import diffusion, refusal
from tests.training import AUTOENCODER, losses, run_training

pytestmark = pytest.mark.slow

PLAN = ["trainer.max_steps=2"]
QUICK = ["n=40", "draws=2", "strength=[0.2,0.5]", "shown=3", "device=cpu", "extractor=random"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def normal(folder) -> Path:
    """Of the digits 0 and 1 alone."""
    return lively(run_training(folder, *PLAN, "run_id=normal", "dataset.only=[0,1]"))


@pytest.fixture(scope="module")
def every(folder) -> Path:
    return lively(run_training(folder, *PLAN, "run_id=every"))


@pytest.fixture(scope="module")
def tissue(folder) -> Path:
    base = ["experiment=tissue_pixel", "accelerator=cpu", "trainer.max_time=null", "network.channels=8", "batch_size=4"]
    words = ["dataset.stride=8", "grid.steps=2", "callbacks.previews.n=4"]
    return lively(run_training(folder, *PLAN, *words, base=base))


def anomaly(run: Path, out: Path, *words: str) -> tuple[dict, list[dict[str, str]]]:
    tasks.main(["anomaly", f"run={run}", f"out={out}", *QUICK, *words])
    assert (out / "anomaly.png").stat().st_size > 10_000
    with (out / "cases.csv").open() as file:
        return json.loads((out / "metrics.json").read_text()), list(csv.DictReader(file))


def column(cases: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(case[name]) for case in cases])


def test_a_run_of_some_classes_is_unconditional(normal):
    config = OmegaConf.load(normal / "config.yaml")
    assert config.dataset.only == [0, 1] and config.data.spec.classes is None
    weights = torch.load(normal / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("embedding.label" in name for name in weights)


def test_figures_are_those_of_the_cases(normal, tmp_path):
    metrics, cases = anomaly(normal, tmp_path / "a")
    assert metrics["n"] == len(cases) == 40 and metrics["normal"] == "of the classes 0, 1"
    strange = column(cases, "anomalous").astype(bool)
    assert (strange == (column(cases, "label") > 1)).all() and strange.sum() == metrics["anomalous"]
    assert set(metrics["methods"]) == {"diffusion", "principal components", "mahalanobis"}
    for method, found in metrics["methods"].items():
        scores = column(cases, f"score {method}")
        image = found["image"]
        assert image["auroc"]["value"] == pytest.approx(roc_auc_score(strange, scores), abs=1e-3)
        assert image["auprc"]["value"] == pytest.approx(average_precision_score(strange, scores), abs=1e-3)
        assert image["auroc"]["low"] <= image["auroc"]["value"] <= image["auroc"]["high"]
    assert "pixel" not in metrics["methods"]["diffusion"]  # digits have no masks
    tried = {float(strength): auroc for strength, auroc in metrics["tried"].items()}
    assert tried.keys() == {0.2, 0.5} and metrics["strength"] == [max(tried, key=tried.get)]
    with np.load(tmp_path / "a" / "maps.npz") as arrays:
        assert arrays["maps"].shape == (40, 8, 8) and (arrays["index"] == column(cases, "index")).all()
        assert np.quantile(arrays["maps"].reshape(40, -1), 0.9, axis=1) == pytest.approx(
            column(cases, "score diffusion"), rel=1e-4
        )


def test_an_image_has_its_score_whatever_the_batch_and_the_number(normal, tmp_path):
    words = ["strength=[0.3]", "combine=mean"]
    scores = []
    for name, more in {"a": [], "b": ["batch_size=7"], "c": ["seed=1"]}.items():
        found = anomaly(normal, tmp_path / name, *words, *more)[1]
        scores.append(column(found, "score diffusion"))
    assert scores[0] == pytest.approx(scores[1], rel=1e-3) and abs(scores[0] / scores[2] - 1).max() > 0.01


def test_both_sides_and_every_strength(normal, tmp_path):
    metrics, cases = anomaly(normal, tmp_path / "a", "sides=both", "combine=mean")
    assert metrics["strength"] == [0.2, 0.5] and metrics["sides"] == "both"
    assert (column(cases, "score diffusion") >= 0).all() and column(cases, "score diffusion").min() < 1


def test_where_all_images_are_normal_there_are_scores_alone(every, tmp_path):
    metrics, cases = anomaly(every, tmp_path / "a")
    assert metrics["anomalous"] is None and not any(metrics["methods"].values()) and "anomalous" not in cases[0]
    assert len(column(cases, "score mahalanobis")) == 40


def test_inversion_leads_towards_the_normal_class(every, tmp_path):
    words = ["normal=[3]", "method=inversion", "guidance=2", "sampler=ddim", "grid=karras", "grid.steps=4"]
    metrics, _ = anomaly(every, tmp_path / "a", *words)
    assert metrics["label"] == 3 and metrics["draws"] == 1 and metrics["normal"] == "of the classes 3"
    other, _ = anomaly(every, tmp_path / "b", *words, "label=5")
    values = [m["methods"]["diffusion"]["image"]["auroc"]["value"] for m in (metrics, other)]
    assert values[0] != values[1]


def test_redrawing_is_told_a_class_where_one_is_asked_for(every, tmp_path):
    words = ["normal=[3]", "method=redraw", "grid.steps=3", "sampler=ddim", "strength=[0.8]"]
    plain, told = (
        anomaly(every, tmp_path / str(len(more)), *words, *more)[1] for more in ([], ["label=3", "guidance=2"])
    )
    assert (column(plain, "score diffusion") != column(told, "score diffusion")).any()


def test_an_autoencoder_takes_the_place_of_principal_components(normal, folder, tmp_path):
    vae = run_training(folder, *PLAN, "dataset.only=[0,1]", base=AUTOENCODER)
    metrics, _ = anomaly(normal, tmp_path / "a", f"autoencoder={vae}")
    assert "autoencoder" in metrics["methods"] and "principal components" not in metrics["methods"]


def test_lesions_of_other_data_with_masks(tissue, tmp_path):
    metrics, cases = anomaly(tissue, tmp_path / "a", "dataset=lesions", "dataset.stride=8", "dataset.contrast=high")
    assert metrics["normal"] == "where the mask is empty" and 10 < metrics["anomalous"] < 30
    pixel = metrics["methods"]["diffusion"]["pixel"]
    strange = column(cases, "anomalous").astype(bool)
    dices = column(cases, "dice diffusion")
    assert np.isnan(dices[~strange]).all() and pixel["dice"]["value"] == pytest.approx(dices[strange].mean(), abs=1e-4)
    with np.load(tmp_path / "a" / "maps.npz") as arrays:
        from datamodules.lesions import Lesions

        masks = Lesions(contrast="high", stride=8).split("test").masks[torch.from_numpy(arrays["index"]), 0].numpy()
        assert pixel["auroc"]["value"] == pytest.approx(roc_auc_score(masks.flatten(), arrays["maps"].flatten()))


@pytest.mark.parametrize("shape", [(9, 8, 8, 1), (16, 12, 2)], ids=["volumes", "two channels"])
def test_any_images(tmp_path, shape):
    metrics, _ = anomaly(npz_run(tmp_path, shape), tmp_path / "a", "n=4")
    assert metrics["methods"]["diffusion"] == {}


def test_masks_that_normal_images_have_too_mark_no_lesions(tissue, tmp_path):
    """Tissue has masks of its stain, in all its images."""
    metrics, _ = anomaly(tissue, tmp_path / "a", "normal=[low DAB]", "n=20")
    assert "pixel" not in metrics["methods"]["diffusion"] and metrics["normal"] == "of the classes low DAB"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=guess"], "expected, redraw, inversion"),
        (["strength=[0]"], "above 0"),
        (["strength=[]"], "above 0"),
        (["strength=[0.3,1.5]"], "up to 1"),
        (["combine=all"], "best or mean"),
        (["sides=low"], "high"),
        (["quantile=2"], "quantile=2"),
        (["smooth=-1"], "smooth=-1"),
        (["draws=0"], "draws=0"),
        (["n=0"], "n=0"),
        (["normal=[12]"], "the classes 0 (0)"),
        (["normal=[0,1,2,3,4,5,6,7,8,9]"], "all classes"),
        (["method=inversion"], "without labels"),
        (["label=3"], "without labels"),
        (["dataset=tissue"], "shape"),
        (["dataset=lesions", "normal=[0]"], "shape"),
        (["autoencoder=nowhere"], "autoencoder=nowhere does not exist"),
    ],
)
def test_a_mistake_is_one_line(normal, tmp_path, capfd, words, said):
    assert said in refusal(capfd, diffusion, "anomaly", f"run={normal}", f"out={tmp_path / 'out'}", *words)
    assert not (tmp_path / "out").exists()


def test_what_a_conditional_run_lacks_is_one_line(every, normal, tmp_path, capfd):
    said = refusal(capfd, diffusion, "anomaly", f"run={every}", f"out={tmp_path / 'out'}", "method=inversion")
    assert "label=" in said
    said = refusal(capfd, diffusion, "anomaly", f"run={every}", f"out={tmp_path / 'out'}", f"autoencoder={normal}")
    assert "not the run of an autoencoder" in said


def test_a_run_of_simplex_noise_is_asked_with_it(folder, normal, tmp_path):
    from diffusion.random import simplex
    from diffusion.runs import Run

    run = lively(run_training(folder, *PLAN, "run_id=simplex", "dataset.only=[0,1]", "model.noise=simplex"))
    assert Run.open(run).generative().draw is simplex
    assert losses(run) != losses(normal)
    anomaly(run, tmp_path / "a")
