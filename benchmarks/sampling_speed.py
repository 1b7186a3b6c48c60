"""Sampling images a second at equal evaluations of matched networks: ours beside the libraries of diffusion models.

    pip install -e ".[benchmarks]"
    python benchmarks/sampling_speed.py      # 28 x 28 and 64 x 64, ten minutes on two cores

Each tool draws by DDIM with its own pipeline, from a network with its first weights (benchmarks/peers.py), in turns in
one process; the figure is the median over the turns. benchmarks/quality.py has the time at equal quality.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from peers import denoising_network, diffusers_network, monai_network, our_network  # noqa: E402

from diffusion.processor import settle  # noqa: E402
from diffusion.provenance import machine  # noqa: E402

Draw = Callable[[int], object]
"""Draws so many images."""
CHANNELS = 3


def untrained(network: torch.nn.Module, shape: tuple[int, ...], steps: int, at_once: int | None = None) -> Draw:
    """What draws by `steps` evaluations an image, all together or so many `at_once`, of our network as it is."""
    from diffusion.codecs import Identity
    from diffusion.denoiser import NetworkDenoiser
    from diffusion.generative import GenerativeModel
    from diffusion.grids import Karras
    from diffusion.parameterizations import EDM
    from diffusion.samplers import ddim
    from diffusion.schedulers import EDM as VarianceExploding
    from diffusion.tasks.sample import sample

    denoiser = NetworkDenoiser(VarianceExploding(), EDM(sd=0.5), network)
    model = GenerativeModel(denoiser, Identity(), ddim, Karras(steps))
    return lambda n: sample(model, shape, n, None, seed=0, batch_size=at_once or n)


def ours(size: int, steps: int) -> Draw:
    from diffusion.networks import UNet

    return untrained(UNet(CHANNELS, CHANNELS, (size, size), **our_network(size)), (CHANNELS, size, size), steps)


def diffusers(size: int, steps: int) -> Draw:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(diffusers_network(size, CHANNELS).eval(), DDIMScheduler(num_train_timesteps=1000))
    pipeline.set_progress_bar_config(disable=True)
    return lambda n: pipeline(batch_size=n, num_inference_steps=steps, output_type="np")


def monai(size: int, steps: int) -> Draw:
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps=steps)
    inferer, network = DiffusionInferer(scheduler), monai_network(size, CHANNELS).eval()

    def draw(n: int) -> object:
        noise = torch.randn(n, CHANNELS, size, size)
        with torch.no_grad():
            return inferer.sample(input_noise=noise, diffusion_model=network, scheduler=scheduler, verbose=False)

    return draw


def denoising_diffusion_pytorch(size: int, steps: int) -> Draw:
    from denoising_diffusion_pytorch import GaussianDiffusion

    network = denoising_network(size, CHANNELS)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000, sampling_timesteps=steps).eval()

    def draw(n: int) -> object:
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            return diffusion.sample(batch_size=n)

    return draw


def compare(size: int, steps: int, n: int, turns: int) -> dict[str, dict[str, float]]:
    draws = {tool.__name__: tool(size, steps) for tool in (ours, diffusers, monai, denoising_diffusion_pytorch)}
    times: dict[str, list[float]] = {name: [] for name in draws}
    for turn in range(turns + 1):
        for name, draw in draws.items():
            start = time.perf_counter()
            draw(n)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: {"images_per_second": n / statistics.median(found)} for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 64])
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmarks" / "sampling_speed.json")
    options = parser.parse_args()
    settle()
    torch.manual_seed(0)
    rows = {}
    for size in options.sizes:
        rows[size] = compare(size, options.evaluations, options.n, options.turns)
        print(f"{size} x {size}, {options.n} images, {options.evaluations} evaluations each")
        for name, row in rows[size].items():
            ratio = rows[size]["ours"]["images_per_second"] / row["images_per_second"]
            print(f"{name:30}{row['images_per_second']:>8.2f} images/s{ratio:>7.2f}x", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "evaluations": options.evaluations, "n": options.n}
    options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
