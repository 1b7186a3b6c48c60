"""python -m diffusion segment: masks of images, how near to the true ones they are, and where not to be trusted."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.config import choice_of
from diffusion.apps.output import best_device, emptied, entry, mask_levels, output_folder, progress
from diffusion.apps.subject import data_of
from diffusion.errors import UserError
from diffusion.metrics import interval
from diffusion.metrics.classification import auroc_values
from diffusion.metrics.segmentation import calibration_of, confusion, dice_of, entropy_of, hausdorff95, iou_of
from diffusion.runs import Run
from diffusion.tasks.reconstruct import evenly_spaced
from diffusion.tasks.sample import check_count, check_positive
from diffusion.tasks.segment import Segmenter, mean_masks
from diffusion.tasks.segment_figure import save_cases, save_reliability

log = logging.getLogger("diffusion")

DEFINITIONS = {
    "pixels": "of the images at the size at which the run was trained",
    "dice": "2 |A and B| / (|A| + |B|) of a case and class; 1 where both are empty; mean over cases",
    "dice_where_there": "the same over the cases whose true mask has the class",
    "iou": "|A and B| / |A or B|; 1 where both are empty; mean over cases",
    "hd95": "in pixels: from each surface pixel of one mask to the nearest of the other, the 95th percentile, the "
    "larger of the two directions; 0 where both are empty; cases where one is empty are left out, and counted",
    "uncertainty": "entropy of the mean probabilities of the classes over log K, 0 to 1",
    "uncertainty_auroc": "how well the uncertainty tells wrong pixels from right ones, over all pixels; interval over "
    "cases",
    "ece": "expected calibration error of the foreground's probability, 15 bins of equal width",
}


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, masks.npz, segmentations.png and reliability.png into the output folder."""
    check(config)
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema).under(config)
    device = best_device(config.device)
    segmenter = run.model.segmenter(run.spec, run.weights, device)
    if config.images is not None:
        find(run, segmenter, config, device)
        return
    datamodule = data_of(run, run.config, "the figures are of other images")
    if datamodule.spec.mask_classes != run.spec.mask_classes:
        raise UserError(
            f"{datamodule.source} has {datamodule.spec.mask_classes or 'no'} classes of masks, but the run finds "
            f"{run.spec.mask_classes}: choose the data it is of, or images=DIR for masks without figures"
        )
    out = output_folder(str(config.out or run.directory / "segment"), config.overwrite)

    start = time.perf_counter()
    split = datamodule.split(config.split)
    chosen = evenly_spaced(len(split), config.n or len(split))
    split = split.take(chosen).eight_bit()
    names = datamodule.names[config.split] if datamodule.names else None
    probabilities = found_of(segmenter, split.images, chosen.tolist(), config, device)
    found, truth = probabilities.argmax(1), split.masks[:, 0].long()
    uncertainty, wrong = entropy_of(probabilities), found != truth
    cases = figures_of(found, truth, run.spec.mask_classes)
    auroc = trust_of(uncertainty, wrong)
    calibration = calibration_of(1 - probabilities[:, 0], truth > 0)
    metrics = {
        "n": len(split),
        "split": config.split,
        "size": list(run.spec.shape[1:]),
        "samples": config.samples if segmenter.random else 1,
        "classes": {name: summary(of_class, config.seed) for name, of_class in cases.items()},
        "mean_dice": entry(interval(mean_dice(cases), seed=config.seed), len(split)),
        "wrong_pixels": float(wrong.float().mean()),
        "uncertainty_auroc": None if auroc is None else entry(interval(auroc, seed=config.seed), len(split)),
        "ece": calibration.error,
        "definitions": DEFINITIONS,
        "data": {"source": datamodule.source, "fingerprint": datamodule.fingerprint()},
        **receipt(run, config, start),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    labels = [names[place] if names else "" for place in chosen.tolist()]
    write_cases(out / "cases.csv", chosen, labels, cases, wrong, uncertainty)
    save_masks(out / "masks.npz", probabilities, uncertainty, index=chosen.numpy(), truth=truth.byte().numpy())
    order = mean_dice(cases).argsort(kind="stable")
    shown = order[evenly_spaced(len(order), config.shown).numpy()]
    titles = [f"{i + 1} of {len(order)}\nDice {mean_dice(cases)[place]:.3f}" for i, place in ranks(order, shown)]
    save_cases(split.images[shown], truth[shown], found[shown], uncertainty[shown], titles, out / "segmentations.png")
    area = metrics["uncertainty_auroc"] and metrics["uncertainty_auroc"]["value"]
    save_reliability(calibration, uncertainty.flatten(), wrong.flatten(), area, out / "reliability.png")
    report(metrics)
    log.info("%s", out / "segmentations.png")


def find(run: Run, segmenter: Segmenter, config: DictConfig, device: torch.device) -> None:
    """The masks of pictures that have none: masks.npz, a PNG for each under masks/, the figure, and what was done."""
    names, images = pictures_of(run, config)
    chosen = evenly_spaced(len(images), config.n or len(images))
    out = output_folder(str(config.out or run.directory / "segment"), config.overwrite)
    start = time.perf_counter()
    names, images = [names[place] for place in chosen.tolist()], images[chosen]
    probabilities = found_of(segmenter, images, chosen.tolist(), config, device)
    found, uncertainty = probabilities.argmax(1), entropy_of(probabilities)
    mean = uncertainty.flatten(1).mean(1)
    metrics = {
        "n": len(images),
        "images": str(config.images),
        "size": list(run.spec.shape[1:]),
        "samples": config.samples if segmenter.random else 1,
        "uncertainty": float(mean.mean()),
        "definitions": {key: DEFINITIONS[key] for key in ("pixels", "uncertainty")},
        **receipt(run, config, start),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    with (out / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "name", "class", "found_pixels", "uncertainty"])
        for i, name in enumerate(names):
            for k in range(1, probabilities.shape[1]):
                rows.writerow([int(chosen[i]), name, k, int((found[i] == k).sum()), f"{mean[i]:.6g}"])
    save_masks(out / "masks.npz", probabilities, uncertainty, index=chosen.numpy(), names=np.array(names))
    save_pictures(out / "masks", names, found, run.spec.mask_classes)
    order = mean.argsort(descending=True)[evenly_spaced(len(names), config.shown)]
    titles = [f"{Path(names[place]).name}\nuncertainty {mean[place]:.3f}" for place in order.tolist()]
    save_cases(images[order], None, found[order], uncertainty[order], titles, out / "segmentations.png")
    log.info("%d masks of %s pixels: %s", len(names), " x ".join(map(str, metrics["size"])), out / "masks")


def pictures_of(run: Run, config: DictConfig) -> tuple[list[str], Tensor]:
    """Names and uint8 images (N, C, H, W) of the pictures in the folder, fitted as the run's own data were.

    Raises UserError where the run's images are no pictures.
    """
    channels, *sides = run.spec.shape
    if len(sides) != 2 or sides[0] != sides[1] or channels not in (1, 3):
        raise UserError(f"images={config.images}: the run is of images {run.spec.shape}, which no picture files hold")
    node = choice_of("dataset", "folder")
    node.update({key: run.config.dataset[key] for key in ("fit", "intensity") if key in run.config.dataset})
    node.update({"path": str(config.images), "size": sides[0], "channels": channels, "bits": 8})
    return instantiate(node, _convert_="all").pictures()


def save_pictures(folder: Path, names: list[str], found: Tensor, classes: int) -> None:
    """A grey PNG for each mask (N, H, W), under the picture's name; the classes are of the values of `mask_levels`."""
    from PIL import Image

    paths = [folder / Path(name).with_suffix(".png") for name in names]
    if len(set(paths)) < len(paths):
        paths = [folder / f"{name}.png" for name in names]
    emptied(folder)
    values = torch.tensor(mask_levels(classes), dtype=torch.uint8)[found].numpy()
    for path, mask in zip(paths, values, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)


def receipt(run: Run, config: DictConfig, start: float) -> dict[str, Any]:
    """Which weights, which seed, and how long it took."""
    return {
        "step": run.position(),
        "ema": run.average,
        "weights": run.fingerprint(),
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }


def check(config: DictConfig) -> None:
    """Raises UserError for a value that means nothing."""
    check_count(config.n)
    check_positive(**{key: config[key] for key in ("samples", "batch_size", "shown")})
    if config.split not in ("train", "val", "test"):
        raise UserError(f"split={config.split}: give train, val or test")


def found_of(
    segmenter: Segmenter, images: Tensor, places: list[int], config: DictConfig, device: torch.device
) -> Tensor:
    """The mean probabilities of the classes in uint8 images (N, C, *S), float32 (N, K, *S)."""
    with progress() as bar:
        total = len(images) * (config.samples if segmenter.random else 1)
        task = bar.add_task("finding masks", total=total)
        return mean_masks(
            segmenter,
            images,
            places,
            config.samples,
            config.seed,
            config.batch_size,
            device,
            lambda count: bar.advance(task, count),
        )


def figures_of(found: Tensor, truth: Tensor, classes: int) -> dict[str, dict[str, np.ndarray]]:
    """class -> figure -> its values (N,), of every class but 0, and how many pixels truth and found have."""
    counts = confusion(found, truth, classes)
    dice, iou = dice_of(counts), iou_of(counts)
    return {
        str(k): {
            "dice": dice[:, k].numpy(),
            "iou": iou[:, k].numpy(),
            "hd95": np.array([hausdorff95(*pair) for pair in zip(found.numpy() == k, truth.numpy() == k, strict=True)]),
            "truth_pixels": counts[:, k].sum(1).numpy(),
            "found_pixels": counts[:, :, k].sum(1).numpy(),
        }
        for k in range(1, classes)
    }


def mean_dice(cases: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Of each case, the mean over the classes but 0."""
    return np.mean([of_class["dice"] for of_class in cases.values()], axis=0)


def summary(of_class: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Means over cases with 95% bootstrap intervals, and the cases in which the class is not there, or not found."""
    found: dict[str, Any] = {}
    for name in ("dice", "iou", "hd95"):
        values = of_class[name][np.isfinite(of_class[name])]
        found[name] = entry(interval(values, seed=seed), len(values)) if len(values) else None
    truth, seen = of_class["truth_pixels"] > 0, of_class["found_pixels"] > 0
    there = of_class["dice"][truth]
    found["dice_where_there"] = entry(interval(there, seed=seed), len(there)) if len(there) else None
    lost = {"not_there": ~truth & ~seen, "missed": truth & ~seen, "made_up": ~truth & seen}
    return found | {name: int(which.sum()) for name, which in lost.items()}


def trust_of(uncertainty: Tensor, wrong: Tensor) -> np.ndarray | None:
    """For each case a value whose mean over the cases is the AUROC over all pixels; None if all are right, or wrong.

    All cases have as many pixels, and the pixels of one case are no independent draws: cases are what is resampled.
    """
    u = uncertainty.flatten().double()
    values = auroc_values(torch.stack([-u, u], 1), wrong.flatten().long())
    return None if values is None else values.reshape(len(wrong), -1).mean(1).numpy()


def ranks(order: np.ndarray, shown: np.ndarray) -> list[tuple[int, int]]:
    """The rank and the place of each shown case, the worst first."""
    rank = {int(place): i for i, place in enumerate(order)}
    return [(rank[int(place)], int(place)) for place in shown]


def write_cases(
    path: Path,
    index: Tensor,
    names: list[str],
    cases: dict[str, dict[str, np.ndarray]],
    wrong: Tensor,
    uncertainty: Tensor,
) -> None:
    """One row for each case and class: its figures, and the case's share of wrong pixels and mean uncertainty."""
    share, mean = wrong.flatten(1).float().mean(1), uncertainty.flatten(1).mean(1)
    figures = list(next(iter(cases.values())))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["index", "name", "class", *figures, "wrong_pixels", "uncertainty"])
        for i, place in enumerate(index.tolist()):
            of_case = [f"{share[i]:.6g}", f"{mean[i]:.6g}"]
            for name, of_class in cases.items():
                rows.writerow([place, names[i], name, *(f"{of_class[key][i]:.6g}" for key in figures), *of_case])


def save_masks(path: Path, probabilities: Tensor, uncertainty: Tensor, **more: np.ndarray) -> None:
    """masks uint8 (N, *S), probabilities float16 (N, *S, K), uncertainty float16 (N, *S), and more."""
    arrays = {
        "masks": probabilities.argmax(1).byte().numpy(),
        "probabilities": probabilities.movedim(1, -1).half().numpy(),
        "uncertainty": uncertainty.half().numpy(),
    }
    np.savez_compressed(path, **arrays, **more)


def report(metrics: dict[str, Any]) -> None:
    """The figures, one a line."""
    log.info("%d %s images of %s pixels", metrics["n"], metrics["split"], " x ".join(map(str, metrics["size"])))
    for name, found in metrics["classes"].items():
        for figure in ("dice", "iou", "hd95"):
            if found[figure] is not None:
                value, low, high = (found[figure][key] for key in ("value", "low", "high"))
                log.info("class %s %6s  %.4g  (%.4g to %.4g)", name, figure, value, low, high)
    if (auroc := metrics["uncertainty_auroc"]) is not None:
        ends = (auroc[key] for key in ("value", "low", "high"))
        log.info("uncertainty of wrong pixels: AUROC %.3f  (%.3f to %.3f)", *ends)
    log.info("calibration error %.4f, wrong pixels %.2f%%", metrics["ece"], 100 * metrics["wrong_pixels"])
