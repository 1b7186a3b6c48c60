"""python -m diffusion reconstruct: does compression keep what matters? In numbers, and in a figure."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from diffusion.apps.output import best_device, output_folder, progress, summary, write_cases
from diffusion.codecs import Codec
from diffusion.errors import UserError
from diffusion.extractors import domain_classifier, embeddings, predictions
from diffusion.metrics import (
    frechet_distance,
    left_out,
    psnr_of,
    reconstruction_metrics,
)
from diffusion.runs import Run, datamodule_of
from diffusion.tasks.pictures import save_comparison
from diffusion.tasks.reconstruct import evenly_spaced, members_of, reconstruct
from diffusion.tasks.sample import check_count, check_positive

log = logging.getLogger("diffusion")


def main(config: DictConfig) -> None:
    """Write metrics.json, cases.csv and reconstructions.png into the output folder."""
    check_count(config.n)
    check_positive(batch_size=config.batch_size, shown=config.shown)
    run = Run.open(config.run, checkpoint=config.checkpoint) if config.run else None
    codec = codec_of(run, config)
    datamodule = datamodule_of(config)
    spec = datamodule.spec
    codec.for_images(spec.shape)
    if run and datamodule.fingerprint() != run.config.data.fingerprint:
        log.warning("%s is not what the run was trained on: the figures are of other images", datamodule.source)
    device = best_device(config.device)
    out = output_folder(str(config.out or (run.directory if run else Path("runs")) / "reconstruct"), config.overwrite)
    cache = Path(config.cache or (run.directory.resolve().parent.parent if run else Path("runs")) / ".cache")

    start = time.perf_counter()
    test = datamodule.split("test")
    chosen = evenly_spaced(len(test), config.n or len(test))
    test = test.take(chosen).eight_bit()
    with progress() as bar:
        task = bar.add_task("reconstructing", total=len(test))
        found = reconstruct(
            codec.to(device), test.images, config.batch_size, device, lambda done: bar.update(task, completed=done)
        )
    cases, omitted = reconstruction_metrics(test.images, found), left_out(spec.shape)
    judged: dict[str, Any] = {}
    if not config.classifier:
        omitted["agreement"] = "classifier=false"
    elif spec.classes is None:
        omitted["agreement"] = "the data have no labels"
    else:
        classifier = domain_classifier(datamodule, cache, device)
        before, after = (predictions(classifier, x, spec.multi_label, config.batch_size) for x in (test.images, found))
        cases["agreement"] = same(before, after)
        right = {"originals": same(before, test.labels), "reconstructions": same(after, test.labels)}
        warn_of_a_poor_judge(float(right["originals"].mean()), test.labels)
        judged["classifier_accuracy"] = {name: summary(values, config.seed) for name, values in right.items()}
        features = [embeddings(classifier, images, config.batch_size) for images in (test.images, found)]
        if len(test) > features[0].shape[1]:
            judged["frechet_distance"] = frechet_distance(*features)
        else:
            omitted["frechet_distance"] = f"it takes more images than features, {features[0].shape[1]}"
    for name, values in cases.items():
        if count := int((~values.isfinite()).sum()):
            omitted[name] = f"in {count} images, of which it is infinite"
    members = members_of(test.labels, spec)
    latent_shape = codec.latent_shape(spec.shape)
    metrics = {
        "n": len(test),
        "split": "test",
        "data": {"source": datamodule.source, "fingerprint": datamodule.fingerprint()},
        "codec": {"fingerprint": codec.fingerprint, "latent_shape": list(latent_shape)},
        "compression": round(math.prod(spec.shape) / math.prod(latent_shape), 3),
        **{name: summary(values, config.seed) for name, values in cases.items()},
        "psnr_of_mean_mse": finite(psnr_of(float(cases["mse"].mean()))),
        **judged,
        "left_out": omitted,
        "classes": {
            name: {"n": int(which.sum())} | {key: summary(values[which], config.seed) for key, values in cases.items()}
            for name, which in members.items()
        },
        "seconds": round(time.perf_counter() - start, 1),
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_cases(out / "cases.csv", chosen, test.labels, cases)
    save_comparison(
        {
            f"{name}: {psnr_of(float(cases['mse'][index].mean())):.1f} dB in these": (test.images[index], found[index])
            for name, index in shown_of(members, cases["mse"], config.shown).items()
        },
        out / "reconstructions.png",
    )
    report(metrics, cases)
    log.info("%s", out / "reconstructions.png")


def codec_of(run: Run | None, config: DictConfig) -> Codec:
    """The run's codec, or the one that the config names. Raises UserError for neither, or the identity."""
    if run is not None:
        if run.config.codec is None:  # an autoencoder's run
            if config.codec is not None:
                raise UserError("the run is an autoencoder itself: leave codec out, or run")
            run.warn_if_unfinished()
        return run.under(config).codec()
    if not config.codec or not config.dataset:
        raise UserError("reconstruct needs run=RUN_DIR, or codec=diffusers codec.path=PATH and dataset=NAME")
    codec = instantiate(config.codec)
    if codec.fingerprint is None:
        raise UserError("codec=identity compresses nothing: give codec=diffusers codec.path=PATH, or run=RUN_DIR")
    return codec


def warn_of_a_poor_judge(accuracy: float, labels: Tensor) -> None:
    """A warning if a classifier is no better than one that names the most frequent class each time."""
    if labels.ndim == 1 and accuracy <= (guess := float(labels.bincount().max()) / len(labels)):
        log.warning(
            "the classifier is right on %.3f of the originals, a guess on %.3f: it can judge nothing", accuracy, guess
        )


def same(a: Tensor, b: Tensor) -> Tensor:
    """Whether each image has the same class, or all its labels alike, in both; float64 (N,)."""
    return (a.cpu() == b.cpu()).reshape(len(a), -1).all(1).double()


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown_of(members: dict[str, Tensor], mse: Tensor, shown: int) -> dict[str, Tensor]:
    """The places of the images in the figure: of each class, or of all where there are many, and those lost most."""
    if not 0 < len(members) <= 10:
        members = {"test images": torch.ones(len(mse), dtype=torch.bool)}
    groups = {}
    for name, which in members.items():
        index = which.nonzero().flatten()
        groups[name] = index[evenly_spaced(len(index), shown)]
    return groups | {"those that came back worst": mse.argsort(descending=True)[:shown]}


def report(metrics: dict[str, Any], cases: dict[str, Tensor]) -> None:
    """The figures of all images, one a line."""
    log.info("%d test images, compression %g", metrics["n"], metrics["compression"])
    for name in cases:
        found = metrics[name]
        if found["value"] is not None:
            log.info("%12s  %.4g  (%.4g to %.4g)", name, found["value"], found["low"], found["high"])
    for name, found in metrics.get("classifier_accuracy", {}).items():
        log.info("%12s  %.4g  of the %s are classified right", "", found["value"], name)
    if "frechet_distance" in metrics:
        log.info("%12s  %.4g", "frechet", metrics["frechet_distance"])
    for name, reason in metrics["left_out"].items():
        log.info("%12s  left out: %s", name, reason)
