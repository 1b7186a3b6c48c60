"""What synthetic images are worth: classifiers trained on real, synthetic and mixed images, to be judged on real ones.

All classifiers have the same network, the same initial weights for a seed, as many steps of the same size and the same
learning rates, so that only the images differ. The arms:

    real, synthetic         those images
    augmented               real images, each shifted, turned, scaled and brightened a little
    both                    half of each batch real, half synthetic
    synthetic_then_real     the first half of the steps synthetic images, the second half real ones

and where there are variants of the real images, each of one image (see `python -m diffusion augment`):

    variants                real images, of which a share is replaced by one of their own variants
    variants_augmented      the same, shifted, turned, scaled and brightened a little
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.augmentations import Affine
from diffusion.networks import Classifier
from diffusion.random import generator, seed_of

ARMS = ("real", "augmented", "synthetic", "both", "synthetic_then_real")
OF_VARIANTS = ("variants", "variants_augmented")
BATCH_SIZE = {2: 32, 3: 8}
"""By the number of axes, as the next one."""
CHANNELS = {2: 16, 3: 8}
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
SHIFT = 0.05
"""Standard deviation of the shift of augmented images, as a share of their side."""
BRIGHTNESS = 0.1
"""Standard deviation of their brightness, in units of half the range of grey levels."""


def steps_of(shape: Sequence[int]) -> int:
    """Steps of a training for images of shape (C, *S), unless the user knows better.

    Too few would turn a comparison of images into one of how fast they are learnt: blood cells of 28 x 28 pixels are
    told apart in 55 % of cases after 300 steps, and in 79 % after 600; digits of 8 x 8 in 98 % after 300, as after 600.
    """
    if len(shape) == 4:
        return 100
    return 300 if math.prod(shape[1:]) <= 256 else 600


class Labelled(NamedTuple):
    """Images uint8 (N, C, *S) and their classes int64 (N,), both on the same device."""

    images: Tensor
    labels: Tensor

    def take(self, places: Tensor) -> Labelled:
        places = places.to(self.labels.device)
        return Labelled(self.images[places], self.labels[places])


class Variants(NamedTuple):
    """Images that were made from real ones, each from one of N.

    images: uint8 (V, C, *S), those of one real image behind each other. first: int64 (N + 1,), where those of each real
    image begin, and V. probability: of a real image to be replaced.
    """

    images: Tensor
    first: Tensor
    probability: float

    @classmethod
    def of(cls, images: Tensor, source: Tensor, n: int, probability: float) -> Variants:
        """source: of each image, the place of the real one among n, int64 (V,), in any order."""
        order = source.argsort(stable=True)
        first = torch.cat([torch.zeros(1, dtype=torch.long), source.bincount(minlength=n).cumsum(0)])
        return cls(images[order.to(images.device)], first, probability)

    def take(self, places: Tensor) -> Variants:
        """Those of the real images at these places, and of no other."""
        places = places.cpu()
        kept = [torch.arange(int(self.first[place]), int(self.first[place + 1])) for place in places]
        source = torch.repeat_interleave(torch.arange(len(places)), (self.first[1:] - self.first[:-1])[places])
        images = self.images[torch.cat(kept).to(self.images.device)]
        return Variants.of(images, source, len(places), self.probability)

    def instead(self, images: Tensor, places: Tensor, rng: torch.Generator) -> Tensor:
        """The real images at these places, uint8 (B, C, *S), some of them replaced by one of their variants."""
        first, count = self.first[places], (self.first[1:] - self.first[:-1])[places]
        chosen = first + (torch.rand(len(places), generator=rng) * count).long()
        replaced = (torch.rand(len(places), generator=rng) < self.probability) & (count > 0)
        found = images.clone()
        found[replaced.to(images.device)] = self.images[chosen[replaced].to(images.device)]
        return found


def within_budget(labels: Tensor, budget: int, seed: int) -> Tensor:
    """The places of `budget` images of each class of labels (N,), or of all where there are fewer; in rising order.

    A smaller budget takes some of those of a larger one. What is drawn of a class depends on its images and the seed.
    """
    chosen = []
    for label in labels.unique().tolist():
        of_class = (labels == label).nonzero().flatten().cpu()
        order = torch.randperm(len(of_class), generator=generator("utility", seed, "budget", label))
        chosen.append(of_class[order[:budget]])
    return torch.cat(chosen).sort().values


def batch_of(
    arm: str,
    real: Labelled,
    synthetic: Labelled,
    size: int,
    progress: float,
    rng: torch.Generator,
    variants: Variants | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch for a classifier of this arm: images float32 (size, C, *S) in [-1, 1] and labels (size,).

    progress: the share of the training that is done, in [0, 1). Images are drawn with replacement. variants: of `real`.
    """
    if arm in OF_VARIANTS:
        places = torch.randint(len(real.labels), (size,), generator=rng)
        drawn = real.take(places)
        images = variants.instead(drawn.images, places, rng).float() / 127.5 - 1
        return augmented(images, rng) if arm == "variants_augmented" else images, drawn.labels
    share = {"synthetic": 1.0, "both": 0.5, "synthetic_then_real": float(progress < 0.5)}.get(arm, 0.0)
    made = round(share * size)
    parts = [
        source.take(torch.randint(len(source.labels), (count,), generator=rng))
        for source, count in ((synthetic, made), (real, size - made))
        if count
    ]
    images = torch.cat([part.images for part in parts]).float() / 127.5 - 1
    if arm == "augmented":
        images = augmented(images, rng)
    return images, torch.cat([part.labels for part in parts])


def augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (B, C, *S) in [-1, 1], each shifted, turned and scaled a little in its plane, and made lighter or darker.

    They are not mirrored, for that makes another digit, and another organ, of some.
    """
    affine = Affine(probability=1.0, shift=SHIFT * min(images.shape[-2:]))
    moved, _ = affine(images, torch.randn(len(images), affine.draws, generator=rng).to(images.device))
    light = BRIGHTNESS * torch.randn(len(images), *[1] * (images.ndim - 1), generator=rng)
    return (moved + light.to(images.device)).clamp(-1, 1)


@torch.enable_grad()
def trained(
    arm: str,
    real: Labelled,
    synthetic: Labelled,
    classes: int,
    steps: int,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    variants: Variants | None = None,
) -> Classifier:
    """A classifier of this arm, in evaluation mode, on the device of the images.

    AdamW on one cycle of learning rates (Smith and Topin 2019) and the cross-entropy. It depends on its images, the
    arm, the steps and the seed alone, its initial weights on the seed alone; the global random state stays as it was.
    `on_step` is told after each step how many are done.
    """
    dims, device = real.images.ndim - 2, real.images.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("utility", seed, "weights"))
        classifier = Classifier(real.images.shape[1], dims, classes, CHANNELS[dims]).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    rng = generator("utility", seed, "batches", arm)
    for step in range(steps):
        images, labels = batch_of(arm, real, synthetic, BATCH_SIZE[dims], step / steps, rng, variants)
        loss = F.cross_entropy(classifier(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if on_step is not None:
            on_step(step + 1)
    return classifier.eval()


@torch.no_grad()
def probabilities(classifier: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """What the classifier gives each class of images uint8 (N, C, *S): float64 (N, K) on the CPU."""
    device = next(classifier.parameters()).device
    logits = [classifier(part.to(device).float() / 127.5 - 1).cpu() for part in images.split(batch_size)]
    return torch.cat(logits).double().softmax(1)
