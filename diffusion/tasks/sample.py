"""Draw samples from a generative model, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion.codecs import Codec
from diffusion.denoiser import Cond, Denoiser, NetworkDenoiser
from diffusion.errors import UserError
from diffusion.generative import GenerativeModel
from diffusion.processes import gathered, place
from diffusion.random import seed_of
from diffusion.samplers import OnStep


def labels_of(label: int | Sequence[int] | str | None, n: int, classes: int | None) -> Tensor | None:
    """The class of each of n samples, int64 (n,), or None for a model that knows no classes.

    `label` is a class, a list of classes to take in turn, "all" for every class in turn, or None for "all" where
    there are classes. Raises UserError for a class that does not exist, or any class where there are none.
    """
    if classes is None:
        if label is not None and label != "all":
            raise UserError(f"label={label}: this run was trained without labels; leave label out")
        return None
    wanted = list(range(classes)) if label is None or label == "all" else label
    wanted = [wanted] if isinstance(wanted, int) else wanted
    # A list in a config is no list, but it is a sequence; a text is one too, but not of numbers.
    if not isinstance(wanted, Sequence) or not wanted or not all(type(w) is int for w in wanted):
        raise UserError(f"label={label}: give a class index or name, a list of them such as [0,1], or all")
    for w in wanted:
        if not 0 <= w < classes:
            raise UserError(f"label={w}: the classes of this run are 0 to {classes - 1}")
    return torch.tensor([wanted[i % len(wanted)] for i in range(n)])


def of_label(labels: Tensor | None) -> dict[str, Tensor]:
    """What a model is told of these classes."""
    return {} if labels is None else {"label": labels}


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 ... 255, rounded to the nearest; values outside are clipped. Raises UserError for NaN."""
    return _levels(images, 255).to(torch.uint8)


def to_uint16(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 ... 65535, rounded to the nearest; values outside are clipped. Raises UserError for NaN."""
    return _levels(images, 65535).to(torch.int32).to(torch.uint16)


def _levels(images: Tensor, most: int) -> Tensor:
    if not torch.isfinite(images).all():
        raise UserError("the model made values that are not finite: it has not been trained, or it has diverged")
    return ((images.clamp(-1, 1) + 1) * (most / 2)).round()


def sample(
    generative: GenerativeModel,
    shape: Sequence[int],
    n: int,
    cond: Cond | None,
    seed: int,
    batch_size: int,
    on_step: OnStep | None = None,
    on_batch: Callable[[int], None] | None = None,
    first: int = 0,
    convert: Callable[[Tensor], Tensor] = to_uint8,
) -> Tensor:
    """Images `first` ... n - 1 as uint8, or what `convert` makes of [-1, 1], (n - first, *shape) on the CPU.

    shape: of an image, (C, *S); cond: of all n images. Image i depends on (seed, i) and its own condition alone.
    `on_step` sees the steps of the first batch only; `on_batch` is told after each batch how many images are done.
    Several processes draw a part each, in batches of up to `batch_size`, and all get all images; each must call this.
    Raises UserError if n or batch_size is below 1.
    """
    check_positive(n=n, batch_size=batch_size)
    rank, processes = place()
    share = -(-(n - first) // processes)
    # Where the parts are not equal, the last image is drawn more than once: all make the same number of steps, for a
    # network that is dealt out among the processes needs all of them in each.
    mine = [min(first + rank * share + i, n - 1) for i in range(share)]
    found: Tensor | UserError
    try:
        images = []
        for start in range(0, share, batch_size):
            places = mine[start : start + batch_size]
            own = {key: values[places] for key, values in (cond or {}).items()}
            seeds = [seed_of(seed, i) for i in places]
            batch = generative.sample(shape, own, seeds=seeds, on_step=on_step if start == 0 else None)
            images.append(convert(batch).cpu())
            if on_batch is not None:
                on_batch(min(n, first + processes * (start + len(places))))
        found = torch.cat(images)
    except UserError as error:  # the others wait, and are to raise it too
        found = error
    parts = gathered(found)
    for part in parts:
        if isinstance(part, UserError):
            raise part
    return torch.cat(parts)[: n - first]


def check_positive(**values: int) -> None:
    """Raises UserError, by its name, for a value that is no whole number or below 1."""
    for name, value in values.items():
        if type(value) is not int:
            raise UserError(f"{name}={value}: give a whole number")
        if value < 1:
            raise UserError(f"{name}={value}: ask for at least 1")


def check_count(n: int | None) -> None:
    """Raises UserError unless n is a number of images, or None, which is all of them."""
    if n is not None and type(n) is not int:
        raise UserError(f"n={n}: give a whole number, or null for all")
    check_positive(n=1 if n is None else n)


def networks_of(denoiser: Denoiser) -> list[nn.Module]:
    """The networks that a denoiser asks: its own, and those of what guides it."""
    return [module.network for module in denoiser.modules() if isinstance(module, NetworkDenoiser)]


@contextmanager
def counted_evaluations(denoiser: Denoiser) -> Iterator[Callable[[], int]]:
    """Count the images that pass through denoising networks; the value is a function that tells how many so far."""
    count = 0

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += len(arguments[0])

    handles = [network.register_forward_pre_hook(add) for network in networks_of(denoiser)]
    try:
        yield lambda: count
    finally:
        for handle in handles:
            handle.remove()


class Trajectory:
    """An on_step callback that keeps the first `count` samples on their way; `codec` makes pictures of them later."""

    def __init__(self, count: int, codec: Codec):
        self.count, self.codec = count, codec
        self._noisy: list[Tensor] = []
        self._means: list[Tensor] = []

    def __call__(self, step: int, x: Tensor, mean: Tensor) -> None:
        # Strong noise is brought to unit variance, so that it is seen at all.
        x = x[: self.count].float()
        self._noisy.append(x / x.std(correction=0).clamp(min=1.0))
        self._means.append(mean[: self.count].float().clone())

    def frames(self) -> list[Tensor]:
        """x_t at every step, as pictures uint8 (count, *shape)."""
        return [self._picture(x) for x in self._noisy]

    def strip(self, columns: int = 8) -> tuple[Tensor, Tensor]:
        """Up to `columns` moments spread evenly from the first step to the last: x_t and E[x0 | x_t].

        Each is uint8 (count, columns, *shape).
        """
        last = len(self._noisy) - 1
        chosen = sorted({round(last * c / max(1, columns - 1)) for c in range(columns)})
        noisy, means = ([self._picture(kept[c]) for c in chosen] for kept in (self._noisy, self._means))
        return torch.stack(noisy, 1), torch.stack(means, 1)

    @torch.no_grad()
    def _picture(self, x: Tensor) -> Tensor:
        return to_uint8(self.codec.shown(self.codec.decode(x)).float()).cpu()
