"""A classifier of noisy images from its training to the samples that it guides."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.digits import Digits
from diffusion.apps.config import choice_of
from diffusion.apps.drawn import choice
from diffusion.callbacks.metrics_csv import read_rows
from diffusion.denoiser import Denoiser, Prediction
from diffusion.errors import UserError
from diffusion.grids import Karras
from diffusion.guidance import ClassifierGuidance
from diffusion.runs import Run, noisy_classifier
from diffusion.samplers import heun
from diffusion.schedulers import EDM
from tests.analytic import times
from tests.commands import diffusion, refusal
from tests.training import CLASSIFIER, assert_same_run, run_training

pytestmark = pytest.mark.slow

FULL = ["experiment=digits_classifier", "accelerator=cpu", "trainer.max_time=null"]
SHORT = ["trainer.max_steps=2", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    classifier = run_training(folder, *SHORT, base=CLASSIFIER)
    unlabelled = run_training(folder, *SHORT, "model.condition=[]")
    return SimpleNamespace(folder=folder, classifier=classifier, unlabelled=unlabelled)


def guided(classifier):
    return ["guidance=classifier", f"guidance.classifier.run={classifier}", "device=cpu"]


def test_a_run_without_labels_is_asked_for_classes(runs, tmp_path):
    words = ["n=4", "label=[7,2]", *guided(runs.classifier), "guidance.scale=3"]
    diffusion("sample", f"run={runs.unlabelled}", *words, f"out={tmp_path / 'guided'}")
    with np.load(tmp_path / "guided" / "samples.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    assert labels.tolist() == [7, 2, 7, 2]
    assert json.loads((tmp_path / "guided" / "metrics.json").read_text())["guidance"] == 3
    diffusion("sample", f"run={runs.unlabelled}", "n=4", "guidance=none", "device=cpu", f"out={tmp_path / 'plain'}")
    with np.load(tmp_path / "plain" / "samples.npz") as arrays:
        assert "labels" not in arrays.files and not np.array_equal(arrays["images"], images)


def test_the_receipt_names_the_classifier_and_can_be_written(runs):
    """Its interval has no upper end, which JSON has no number for."""
    node = choice_of("guidance", "classifier")
    node.classifier.run = str(runs.classifier)
    found = json.loads(json.dumps(choice(node), allow_nan=False))
    assert found["classifier"]["run"] == str(runs.classifier) and found["high"] == "inf"


def test_a_run_is_previewed_under_it_and_goes_on_where_the_classifier_has_moved(runs, tmp_path):
    """Previews are drawn in Lightning's inference mode, in which gradients are not to be had without care."""
    moved = shutil.copytree(runs.classifier, tmp_path / "moved")
    words = ["model.condition=[]", "guidance=classifier", "callbacks.previews.every_n_steps=1"]
    run = run_training(tmp_path, *SHORT, *words, f"guidance.classifier.run={runs.classifier}")
    assert list((run / "samples").glob("step_*.png"))
    assert Run.open(run).model.classes(Run.open(run).spec) == 10
    run_training(tmp_path, "trainer.max_steps=3", *SHORT[1:], *words, f"guidance.classifier.run={moved}")
    assert Run.open(run).position() == 3


def test_mistakes_are_told_in_one_line(runs, capfd, tmp_path):
    def said(*words, run=runs.unlabelled):
        return refusal(capfd, diffusion, "sample", f"run={run}", f"out={tmp_path / 'out'}", "device=cpu", *words)

    assert "guidance=classifier needs guidance.classifier.run=RUN_DIR" in said("guidance=classifier")
    assert "guidance.classifier.run=nowhere does not exist" in said(*guided("nowhere"))
    assert "is not the run of a classifier, but of digits_pixel" in said(*guided(runs.unlabelled))
    assert "is a classifier and makes no images" in said(run=runs.classifier)
    assert "low=2.0" in said(*guided(runs.classifier), "guidance.low=2.0", "guidance.high=1.0")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(runs, caplog):
    run = Run.open(runs.classifier)
    data = {"codec_fingerprint": None, "fingerprint": run.config.data.fingerprint}
    model = SimpleNamespace(config=OmegaConf.create({"data": data}))
    assert noisy_classifier(model, run.spec, run=str(runs.classifier)).noisiest == pytest.approx(80)
    assert not [r for r in caplog.records if "other data" in r.message]
    for change in ({"shape": (3, 8, 8)}, {"classes": 9}, {"multi_label": True}):
        other = SimpleNamespace(**{"shape": run.spec.shape, "classes": 10, "multi_label": False} | change)
        with pytest.raises(UserError, match="reads images of shape"):
            noisy_classifier(model, other, run=str(runs.classifier))
    model.config.data.fingerprint = "other"
    noisy_classifier(model, run.spec, run=str(runs.classifier))
    assert [r for r in caplog.records if "other data" in r.message]
    model.config.data.codec_fingerprint = "a" * 16
    with pytest.raises(UserError, match="lives in latents"):
        noisy_classifier(model, run.spec, run=str(runs.classifier))


def test_the_pages_of_a_classifier(runs, capfd):
    diffusion("report", f"run={runs.classifier}", "device=cpu")
    page = (runs.classifier / "report.html").read_text()
    assert "Classifier" in page and "validation accuracy" in page and "accuracy by log-SNR" in page
    assert "autoencoder" not in page and "Samples" not in page
    assert "nothing is compressed" in refusal(capfd, diffusion, "reconstruct", f"run={runs.classifier}", "device=cpu")


def test_a_classifier_goes_on_to_the_bit(tmp_path):
    """From the checkpoint of step 2, as after a kill, to the same state and losses at step 4."""
    words = ["trainer.max_steps=4", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=2"]
    run = run_training(tmp_path, *words, "model.network.dropout=0.5", base=CLASSIFIER)
    whole = shutil.copytree(run, tmp_path / "whole")
    (run / "checkpoints" / "previous.ckpt").rename(run / "checkpoints" / "last.ckpt")
    assert Run.open(run).position() == 2
    run_training(tmp_path, *words, "model.network.dropout=0.5", base=CLASSIFIER)
    assert_same_run(run, whole)


class OfDigits(Denoiser):
    """The optimal denoiser of the training digits, told nothing of classes: their mean, weighed by p(image | x_t)."""

    def __init__(self, scheduler, images):
        super().__init__()
        self.scheduler, self.images = scheduler, images

    def predict(self, x_t, t, cond=None):
        alpha, sigma = self.scheduler.alpha(t).float(), self.scheduler.sigma(t).float()
        distance = torch.cdist(x_t.flatten(1), alpha * self.images.flatten(1)).square()
        share = (-distance / (2 * sigma**2)).softmax(1)
        return Prediction((share @ self.images.flatten(1)).reshape(x_t.shape))


def test_it_learns_to_read_digits_and_guides_towards_them(tmp_path):
    """After 300 steps clean digits are read, pure noise is not, and samples are of the class that was asked for."""
    words = ["trainer.max_steps=300", "trainer.validate_every_n_steps=300"]
    run = run_training(tmp_path, *words, base=FULL)
    row = [row for row in read_rows(run / "metrics.csv") if row["val/accuracy"]][-1]
    assert float(row["accuracy_by_noise/log_snr_above_6"]) > 0.85
    opened = Run.open(run)
    classifier = opened.model.trained_classifier(opened.spec, opened.weights())
    train, test = (Digits().split(name) for name in ("train", "test"))
    images = test.images.float() / 127.5 - 1
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    accuracy = []
    for sigma in times(0.02, 60.0):
        logits = classifier(images + sigma.float() * noise, times(1)[0], sigma)
        accuracy.append(classifier.right(logits, test.labels).mean())
    assert accuracy[0] > 0.9 and 0.05 < accuracy[1] < 0.2

    digits = OfDigits(EDM(), train.images.float() / 127.5 - 1)
    labels = torch.arange(200) % 10
    right = {}
    for scale in (0.0, 4.0):
        x = 80 * torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        drawn = heun(ClassifierGuidance(digits, classifier, scale), x, Karras()(digits.scheduler), {"label": labels})
        nearest = torch.cdist(drawn.flatten(1), digits.images.flatten(1)).argmin(1)
        right[scale] = (train.labels[nearest] == labels).float().mean()
    assert right[0.0] < 0.2 and right[4.0] > 0.6, right
