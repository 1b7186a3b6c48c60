"""A small network of the data at hand, which judges other images of their kind."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.errors import UserError
from diffusion.extractors.base import Extractor
from diffusion.extractors.contrastive import nt_xent, offsets, shifted, view
from diffusion.files import replace_file
from diffusion.networks import Classifier
from diffusion.random import generator, seed_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

VERSION = 1
"""To be raised with every change of the training: files of another version are not used."""
STEPS = {2: 600, 3: 200}
"""By the number of axes: a step on volumes costs ten times as much."""
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
PROJECTION = 64
"""Outputs of the network where there are no classes."""
PATIENCE = 2.0
"""Seconds before there is a progress bar."""


class DomainClassifier(Classifier):
    """A `Classifier` for data of this spec; without classes its outputs are what a contrastive loss compares.

    accuracy: the share of right answers on the splits val and test; of right labels where there are several an image.
        Empty where there are no classes.
    """

    def __init__(self, spec: DataSpec):
        dims = len(spec.shape) - 1
        super().__init__(spec.shape[0], dims, spec.classes or PROJECTION, channels={2: 16, 3: 8}[dims])
        self.accuracy: dict[str, float] = {}


class Domain(Extractor):
    """The embedding of a `DomainClassifier` of these data, for 2-D and 3-D images of any number of channels.

    It is trained on the training split, the first time; see `domain_classifier`, whose judge it is. Probabilities are
    those of the data's classes, and None where several hold at once. For data without labels the same network learns
    to tell images apart instead, by two random views of each (SimCLR, Chen et al. 2020; see `nt_xent`), with a linear
    projection; it has no probabilities.

    steps: of the training; None for `STEPS`. Raises UserError below 1.
    """

    name = "domain"

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        cache: Path,
        device: torch.device | str = "cpu",
        steps: int | None = None,
    ):
        self.spec, self.trained_on = datamodule.spec, datamodule.fingerprint()
        self.steps = STEPS[len(self.spec.shape) - 1] if steps is None else steps
        if type(self.steps) is not int or self.steps < 1:
            raise UserError(f"extractor.steps={steps}: give a whole number above 0, or null")
        network = _network(datamodule, cache, device, self.steps, "judge")
        super().__init__(network, network.output.in_features, device)
        self.reads_classes = self.spec.classes is not None and not self.spec.multi_label

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        values = self.network.embed(images.float() / 127.5 - 1)
        return values, self.network.output(values).softmax(1) if self.reads_classes else None

    def receipt(self) -> dict[str, Any]:
        found = super().receipt() | {
            "trained_on": self.trained_on,
            "training": "contrastive" if self.spec.classes is None else "classification",
            "steps": self.steps,
        }
        if self.spec.classes is not None:
            found["accuracy"] = self.network.accuracy["test"]
        return found | ({"classes": self.spec.classes} if self.reads_classes else {})


def domain_classifier(
    datamodule: pl.LightningDataModule,
    cache: Path,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    purpose: str = "judge",
) -> DomainClassifier:
    """The classifier of the data module's classes, on `device`, in evaluation mode and frozen.

    It is trained the first time and kept as cache/classifier_PURPOSE_FINGERPRINT.safetensors. Classifiers for different
    purposes are different draws of the same recipe: what was trained to please one is judged by another. Batches are
    64 images (16 volumes), shifted by up to a fourteenth of each side, with cross-entropy (one logistic loss a class
    where several hold at once) and AdamW on one cycle of learning rates (Smith and Topin 2019). It depends on the
    training split, `steps` and `purpose` alone, not on a run's seed, so that its figures compare between runs; the
    global random state stays as it was. `STEPS` are about a minute for 28 x 28 pixels on two processor cores, and two
    for 28 x 28 x 28.

    A file that is damaged, or was made otherwise, is replaced with a warning. Raises UserError for data without labels.
    """
    spec = datamodule.spec
    if spec.classes is None:
        raise UserError(
            f"{datamodule.source} has no labels: the domain classifier cannot be trained; choose perceptual=none, or "
            "data with labels"
        )
    return _network(datamodule, cache, device, steps or STEPS[len(spec.shape) - 1], purpose)


def _network(
    datamodule: pl.LightningDataModule, cache: Path, device: torch.device | str, steps: int, purpose: str
) -> DomainClassifier:
    """The network from the cache, or trained and kept there: on labels, or without any on views of the images."""
    spec = datamodule.spec
    kind = "classifier" if spec.classes else "contrastive"
    path = Path(cache) / f"{kind}_{purpose}_{datamodule.fingerprint()}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("domain classifier", purpose, "weights"))
        network = DomainClassifier(spec)
    recipe = f"version {VERSION}, {steps} steps" + ("" if spec.classes else ", contrastive")
    if not _read(path, network, recipe):
        _train(network.to(device), datamodule, steps, purpose, path)
        network.eval()
        for name in ("val", "test") if spec.classes else ():
            split = datamodule.reference(name)
            right = predictions(network, split.images, spec.multi_label) == split.labels
            network.accuracy[name] = right.double().mean().item()
        if network.accuracy:
            log.info("its accuracy: %s", ", ".join(f"{name} {share:.3f}" for name, share in network.accuracy.items()))
        _write(path, network, recipe)
    return network.to(device).eval().requires_grad_(False)


def predictions(classifier: Classifier, images: Tensor, multi_label: bool = False, batch_size: int = 256) -> Tensor:
    """The class of each image, int64 (N,); where several may hold, those of probability above 0.5, bool (N, K).

    images uint8 (N, C, *S); the answer is on the CPU.
    """
    logits = _batched(classifier, classifier, images, batch_size)
    return logits > 0 if multi_label else logits.argmax(1)


def embeddings(classifier: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """The features (N, E) float32 of images uint8 (N, C, *S), on the CPU: what `frechet_distance` compares."""
    return _batched(classifier, classifier.embed, images, batch_size)


@torch.no_grad()
def _batched(classifier: Classifier, apply: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    device = next(classifier.parameters()).device
    return torch.cat([apply(part.to(device).float() / 127.5 - 1).cpu() for part in images.split(batch_size)])


@torch.enable_grad()
def _train(network: DomainClassifier, datamodule: pl.LightningDataModule, steps: int, purpose: str, path: Path) -> None:
    split, spec = datamodule.split("train"), datamodule.spec
    device = next(network.parameters()).device
    kind = "a classifier" if spec.classes else "a network"
    log.info("training %s of %s on %s, once; kept as %s", kind, datamodule.source, device, path)
    batch_size = 64 if len(spec.shape) == 3 else 16
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    rng = generator("domain classifier", purpose, "batches")
    for _ in _with_progress(f"training {kind} of the data", range(steps)):
        batch = split[torch.randint(len(split), (batch_size,), generator=rng)]
        images = batch["image"].to(device)
        if spec.classes:
            loss = _of_labels(network, images, batch["label"].to(device), rng, spec.multi_label)
        else:
            loss = nt_xent(network(view(images, rng)), network(view(images, rng)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    optimizer.zero_grad()


def _of_labels(network: Classifier, images: Tensor, labels: Tensor, rng: torch.Generator, multi_label: bool) -> Tensor:
    moved = shifted(images, offsets(len(images), [side // 14 for side in images.shape[2:]], rng).to(images.device))
    return (F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy)(network(moved), labels)


def _with_progress(title: str, steps: Sequence[int]) -> Iterator[int]:
    """The steps, with a progress bar on stderr from when they have taken a while."""
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    task, start, shown = progress.add_task(title, total=len(steps)), time.monotonic(), False
    try:
        for step in steps:
            yield step
            progress.advance(task)
            if not shown and time.monotonic() - start > PATIENCE:
                progress.start()
                shown = True
    finally:
        if shown:
            progress.stop()


def _read(path: Path, classifier: DomainClassifier, recipe: str) -> bool:
    """Load a classifier from a file; False, with the classifier as it was, where there is none, or none of use."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("recipe") != recipe:
            raise ValueError(f"made by {about.get('recipe', 'something else')}, not by {recipe}")
        accuracy = json.loads(about["accuracy"])
        expected = {name: value.shape for name, value in classifier.state_dict().items()}
        if {name: value.shape for name, value in weights.items()} != expected:
            raise ValueError("its weights are those of another network")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        log.warning("%s is of no use (%s): the network is trained anew", path, " ".join(str(error).split()))
        return False
    classifier.load_state_dict(weights)
    classifier.accuracy = accuracy
    return True


def _write(path: Path, classifier: DomainClassifier, recipe: str) -> None:
    """Keep the classifier; without room or leave for it, say so and go on."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    about = {"recipe": recipe, "accuracy": json.dumps(classifier.accuracy)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: save_file(weights, temporary, about))
    except (OSError, SafetensorError) as error:
        log.warning("%s could not be written (%s): the next run trains it again", path, " ".join(str(error).split()))
