"""How much faster latents are sampled than pixels, with the same network configuration and the same evaluations.

    python benchmarks/latent.py

Both models are those of experiment=bloodmnist_pixel and bloodmnist_latent with the autoencoder of bloodmnist_vae, for
28 x 28 RGB images of 4 classes; decoding is part of the time. The weights are the initial ones, for time does not
depend on them. Pixels and latents take turns, so that the ratio is free of the machine's drift.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from hydra.utils import instantiate  # noqa: E402

from benchmarks import commands  # noqa: E402
from benchmarks.turns import in_turns  # noqa: E402
from datamodules.batch import DataSpec  # noqa: E402
from diffusion import codecs  # noqa: E402
from diffusion.denoiser import NetworkDenoiser  # noqa: E402
from diffusion.generative import GenerativeModel  # noqa: E402
from diffusion.models import factory  # noqa: E402
from tests.training import composed  # noqa: E402

SPEC = DataSpec((3, 28, 28), 4)


def generative(experiment: str, codec: codecs.Codec) -> GenerativeModel:
    """The model that the experiment samples, untrained."""
    config = composed([f"experiment={experiment}", "network=small", "sampler=dpmpp_2m", "grid=karras"])
    channels, *size = codec.latent_shape(SPEC.shape)
    network = factory(config.network)(in_channels=channels, out_channels=channels, size=size, classes=SPEC.classes)
    parameterization = factory(config.parameterization)(sd=1.0)
    denoiser = NetworkDenoiser(instantiate(config.scheduler), parameterization, network)
    return GenerativeModel(denoiser.eval(), codec, instantiate(config.sampler), instantiate(config.grid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=commands.count, default=256, help="images a batch")
    parser.add_argument("--repeats", type=commands.count, default=5)
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "latent.json")
    arguments = parser.parse_args()

    commands.write(arguments.out, {"n": arguments.n})
    network = factory(composed(["experiment=bloodmnist_vae"]).model.network)(3, [28, 28]).eval()
    autoencoder = codecs.Autoencoder(network, torch.zeros(4), torch.ones(4), "0" * 16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {
        "pixel": generative("bloodmnist_pixel", codecs.Identity()),
        "latent": generative("bloodmnist_latent", autoencoder),
    }
    labels = {"label": torch.arange(arguments.n) % SPEC.classes}
    for model in models.values():
        model.denoiser.to(device)
        model.codec.to(device)

    def draw(model: GenerativeModel) -> None:
        model.sample(SPEC.shape, labels, seeds=range(arguments.n)).cpu()

    seconds = in_turns({name: partial(draw, model) for name, model in models.items()}, arguments.repeats)
    speed = {name: arguments.n / taken for name, taken in seconds.items()}
    ratio = speed["latent"] / speed["pixel"]
    found = {"n": arguments.n, "images_per_second": speed, "ratio": ratio}
    for name, value in speed.items():
        print(f"{name:>7}  {value:8.1f} images/s")
    print(f"  ratio  {ratio:8.1f}")
    commands.write(arguments.out, found)


if __name__ == "__main__":
    commands.run(main)
