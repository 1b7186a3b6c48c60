"""python -m diffusion anomaly: where images differ from those that a run was trained on, and how well that is found."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from diffusion.apps.normality import Case, Judged, opened
from diffusion.apps.output import best_device, entry, output_folder, progress, write_cases
from diffusion.apps.sample import numbered
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.extractors import extract
from diffusion.generative import time_of
from diffusion.metrics import interval
from diffusion.metrics.detection import best_threshold, detection
from diffusion.metrics.segmentation import confusion, dice_of
from diffusion.models import factory
from diffusion.runs import Run
from diffusion.tasks.anomaly import (
    Rebuild,
    Rebuilt,
    combined,
    expected,
    inverted,
    rebuilt,
    redrawn,
    score_of,
    surprise,
)
from diffusion.tasks.anomaly_figure import save_anomalies
from diffusion.tasks.novelty import MOST, VARIANCE, mahalanobis, principal_components, principal_rebuilt
from diffusion.tasks.reconstruct import reconstruct
from diffusion.tasks.sample import check_positive, labels_of

log = logging.getLogger("diffusion")

METHODS = ("expected", "redraw", "inversion")
DEFINITIONS = {
    "strength": "sigma / sqrt(alpha^2 + sigma^2) of the noised image",
    "map": "blurred squared difference of image and mean rebuilt image over (blurred variance of the draws + one grey "
    "level squared), over its mean in normal validation images; mean over the strengths used",
    "tried": "AUROC of each strength alone on the validation images, of pixels where there are masks, else of images",
    "score": "the quantile `quantile` of an image's map; with sides=both the distance of its logarithm from that of "
    "normal validation images, in their standard deviations; of mahalanobis the distance itself",
    "auroc, auprc": "of scores against normal or not (auprc: average precision)",
    "pixel": "of maps against the true masks, over all pixels of all images",
    "dice": "of map >= threshold and the true mask, mean over images with a lesion; the threshold gives the largest "
    "Dice over all pixels of the validation images",
    "intervals": "95%, bootstrap over images",
}


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv, maps.npz and anomaly.png into the output folder."""
    check(config)
    run = Run.open(config.run, checkpoint=config.checkpoint, ema=config.ema)
    plain = run.under(OmegaConf.create({**config, "guidance": None}))
    plain.check()
    if run.config.get("control"):
        raise UserError("this run is told more of an image than its class (control), which would give the answer away")
    if config.method != "redraw" and (teacher := run.config.model.get("teacher")):
        raise UserError(
            f"method={config.method} asks what a student of few steps does not know, the mean of all images that fit: "
            f"use method=redraw, or its teacher, {teacher}"
        )
    device = best_device(config.device)
    judged = opened(run, config)
    label = label_of(run, judged, config)
    rebuild = rebuild_of(run.under(config), plain, config, label, device)
    autoencoder = autoencoder_of(config, run) if config.autoencoder else None
    val, test = judged.case("val", config.n), judged.case("test", config.n)
    if not len(val.normal):
        raise UserError("none of the validation images is normal: give a larger n, or other classes by normal=")
    out = output_folder(str(config.out or run.directory / "anomaly"), config.overwrite)

    start = time.perf_counter()
    width, draws = width_of(config, run.spec.shape), 1 if config.method == "inversion" else config.draws
    strengths = strengths_of(config)
    with progress() as bar:

        def again(what: str, case: Case, strengths: Sequence[float]) -> Rebuilt:
            task = bar.add_task(what, total=len(case) * len(strengths) * draws)
            keys = (case.images, case.places, strengths, draws, config.seed, config.batch_size, label, device)
            return rebuilt(rebuild, *keys, lambda done: bar.advance(task, done))

        found = [again("validation images", val, strengths)]
        tried = told_apart(surprise(found[0], width), val, config)
        if tried and config.combine == "best":
            best = max(range(len(tried)), key=tried.__getitem__)
            found, used = [found[0].at([best])], [strengths[best]]
        else:
            used = strengths
        found.append(again("test images", test, used))
    maps = {"diffusion": of_strengths(found, val, width)}
    normal = judged.training(MOST)
    name, others, said = simple_rebuilt(autoencoder, normal, (val, test), config.batch_size, device)
    maps[name] = of_strengths(others, val, width)
    scores = {
        method: score_of(of_test, of_val[val.normal], config.quantile, config.sides == "both")
        for method, (of_val, of_test) in maps.items()
    }
    cache = Path(config.cache or run.directory.resolve().parent.parent / ".cache")
    extractor = factory(config.extractor)(datamodule=judged.normal, cache=cache, device=device)
    scores["mahalanobis"] = mahalanobis(*(extract(extractor, x, 256).values for x in (normal, test.images)))

    figures = {
        method: figures_of(values, maps.get(method), val, test, config.seed) for method, values in scores.items()
    }
    dices = {method: found.pop("dices") for method, found in figures.items() if "dices" in found}
    metrics = {
        "n": len(test),
        "anomalous": int(test.anomalous.sum()) if test.mixed else None,
        "validation": {"n": len(val), "normal": len(val.normal)},
        "normal": judged.said,
        "method": config.method,
        "strength": used,
        "tried": dict(zip(map(str, strengths), tried, strict=True)) if tried else None,
        "draws": draws,
        "label": label,
        "smooth": width,
        "quantile": config.quantile,
        "sides": config.sides,
        "methods": figures,
        "baseline": said,
        "definitions": DEFINITIONS,
        "extractor": extractor.receipt(),
        "step": run.position(),
        "ema": run.average,
        "weights": run.fingerprint(),
        "data": {"source": judged.data.source, "fingerprint": judged.data.fingerprint()},
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    columns = {} if test.anomalous is None else {"anomalous": test.anomalous.double()}
    columns |= {f"score {method}": values for method, values in scores.items()}
    columns |= {f"dice {method}": values for method, values in dices.items()}
    write_cases(out / "cases.csv", torch.tensor(test.places), test.labels, columns)
    np.savez_compressed(out / "maps.npz", maps=maps["diffusion"][1].numpy(), index=np.array(test.places))
    save_anomalies(
        test.images,
        found[1].images[:, -1],
        maps["diffusion"][1],
        scores,
        {method: of_test for method, (_, of_test) in maps.items()},
        test.anomalous if test.mixed else None,
        test.lesions,
        config.shown,
        f"rebuilt\n(strength {used[-1]:g})",
        out / "anomaly.png",
    )
    report(metrics)
    log.info("%s", out / "anomaly.png")


def told_apart(maps: Tensor, val: Case, config: DictConfig) -> list[float] | None:
    """How well each strength's maps (N, L, *S) find what is not normal in validation: AUROC of pixels, or of images.

    None where there is nothing known to be found.
    """
    if not val.mixed:
        return None
    if val.lesions is not None:
        return [detection(maps[:, k], val.lesions)["auroc"].value for k in range(maps.shape[1])]
    both = config.sides == "both"
    scores = [score_of(of, of[val.normal], config.quantile, both) for of in maps.unbind(1)]
    return [detection(each, val.anomalous)["auroc"].value for each in scores]


def simple_rebuilt(
    autoencoder: Codec | None, normal: Tensor, cases: Sequence[Case], batch_size: int, device: torch.device
) -> tuple[str, list[Rebuilt], dict[str, Any]]:
    """What an autoencoder, or without one principal components, make of the images; its name, and what it is."""
    if autoencoder is not None:
        autoencoder = autoencoder.to(device)
        pictures = [reconstruct(autoencoder, case.images, batch_size, device).float() / 127.5 - 1 for case in cases]
        name, said = "autoencoder", {"autoencoder": autoencoder.fingerprint}
    else:
        components = principal_components(normal)
        pictures = [principal_rebuilt(components, case.images) for case in cases]
        name, said = "principal components", {"components": int(components.n_components_), "variance": VARIANCE}
    found = []
    for case, other in zip(cases, pictures, strict=True):
        error = (case.images.float() / 127.5 - 1 - other).square().mean(1)[:, None]
        found.append(Rebuilt(error, torch.zeros_like(error), other[:, None]))
    return name, found, said


def figures_of(scores: Tensor, maps: list[Tensor] | None, val: Case, test: Case, seed: int) -> dict[str, Any]:
    """What one method finds in the test images; `dices` of each image, where masks are known."""
    found: dict[str, Any] = {}
    if not test.mixed:
        return found
    found["image"] = {k: entry(v, len(test)) for k, v in detection(scores, test.anomalous, seed).items()}
    found["image"]["chance"] = {"auroc": 0.5, "auprc": float(test.anomalous.double().mean())}
    if maps is None or test.lesions is None:
        return found
    found["pixel"] = {k: entry(v, len(test)) for k, v in detection(maps[1], test.lesions, seed).items()}
    found["pixel"]["chance"] = {"auroc": 0.5, "auprc": float(test.lesions.double().mean())}
    if val.mixed:
        threshold = best_threshold(maps[0], val.lesions)
        dices = dice_of(confusion(maps[1] >= threshold, test.lesions, 2))[:, 1]
        dices = torch.where(test.anomalous, dices, torch.nan)
        held = dices[test.anomalous]
        found["pixel"] |= {"dice": entry(interval(held.numpy(), seed=seed), len(held)), "threshold": threshold}
        found["dices"] = dices
    return found


def check(config: DictConfig) -> None:
    """Raises UserError for a value that means nothing."""
    check_positive(**{name: config[name] for name in ("n", "draws", "batch_size", "shown")})
    if config.method not in METHODS:
        raise UserError(f"method={config.method}: give {', '.join(METHODS)}")
    if config.combine not in ("best", "mean"):
        raise UserError(f"combine={config.combine}: give best or mean")
    if config.sides not in ("high", "both"):
        raise UserError(f"sides={config.sides}: give high (hard to rebuild), or both (or too easy)")
    strengths_of(config)
    if not (config.smooth is None or (type(config.smooth) in (int, float) and config.smooth >= 0)):
        raise UserError(f"smooth={config.smooth}: give pixels, 0 or more, or null")
    if not 0 <= config.quantile <= 1:
        raise UserError(f"quantile={config.quantile}: give a share from 0 to 1")


def strengths_of(config: DictConfig) -> list[float]:
    """The strengths in rising order. Raises UserError for none, or one that is no share."""
    given = sorted(set(config.strength))
    if not given or not all(0 < one <= 1 for one in given):
        raise UserError(f"strength={config.strength}: give a list of numbers above 0, up to 1, such as [0.1,0.2]")
    return given


def width_of(config: DictConfig, shape: Sequence[int]) -> float:
    return min(shape[1:]) / 14 if config.smooth is None else float(config.smooth)


def label_of(run: Run, judged: Judged, config: DictConfig) -> int | None:
    """The class that the model is told. Raises UserError where it needs one, or takes none."""
    classes, told = run.model.classes(run.spec), run.model.told(run.spec)
    label = labels_of(numbered(config.label, run.spec), 1, classes) if config.label is not None else None
    if label is not None:
        return int(label[0])
    if config.method == "inversion":
        if told is None:
            raise UserError(
                "method=inversion leads towards the normal class, and this run was trained without labels: "
                "use method=redraw, or the run of all classes"
            )
        if judged.classes is None or len(judged.classes) != 1:
            raise UserError("method=inversion leads towards one class: give it by label=, a number or a name")
        return judged.classes[0]
    if told is not None and run.model.label_dropout == 0:
        raise UserError("this run was always told a class (model.label_dropout=0): give the normal one by label=")
    return None


def rebuild_of(run: Run, plain: Run, config: DictConfig, label: int | None, device: torch.device) -> Rebuild:
    """What makes images anew, as the method asks. Raises UserError for a strength that the schedule does not reach."""
    guided = run if label is not None else plain
    if config.method == "inversion":
        made = [each.generative(device) for each in (plain, guided)]
    else:
        made = [guided.generative(device)]
    for strength in strengths_of(config):
        time_of(made[0].denoiser.scheduler, strength)
    return {"expected": expected, "redraw": redrawn, "inversion": inverted}[config.method](*made)


def autoencoder_of(config: DictConfig, run: Run) -> Codec:
    """The autoencoder to compare with. Raises UserError if it is none, or of other images."""
    found = Run.open(config.autoencoder, key="autoencoder")
    if not found.model.compresses:
        raise UserError(
            f"autoencoder={config.autoencoder} is not the run of an autoencoder, but of {found.config.experiment}"
        )
    if found.spec.shape != run.spec.shape:
        raise UserError(
            f"autoencoder={config.autoencoder} is of images {found.spec.shape}, and this run of {run.spec.shape}"
        )
    if found.config.data.fingerprint != run.config.data.fingerprint:
        log.warning("the autoencoder %s learnt from other images than this run", config.autoencoder)
    return found.codec()


def of_strengths(found: Sequence[Rebuilt], val: Case, width: float) -> list[Tensor]:
    """Maps (N, *S) of the validation and the test images, on the scale of normal validation images."""
    maps = [surprise(each, width) for each in found]
    return [combined(each, maps[0][val.normal]) for each in maps]


def report(metrics: dict[str, Any]) -> None:
    """One line a method."""
    if metrics["anomalous"] is None:
        log.info("%d images, all of one kind as far as is known: their scores are in cases.csv", metrics["n"])
        return
    log.info("%d test images, %d of them not normal", metrics["n"], metrics["anomalous"])
    for method, figures in metrics["methods"].items():
        said = [
            f"{kind} {name} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
            for kind in ("image", "pixel")
            for name, one in {
                k: v for k, v in figures.get(kind, {}).items() if k not in ("chance", "threshold")
            }.items()
        ]
        log.info("%20s  %s", method, ", ".join(said))
