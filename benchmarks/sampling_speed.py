"""Sampling images a second at equal evaluations of matched networks: ours beside the libraries of diffusion models.

    pip install -e ".[benchmarks]"
    python benchmarks/sampling_speed.py      # 28 x 28 and 64 x 64, ten minutes on two cores

Each tool draws by DDIM with its own pipeline, from a network with its first weights (benchmarks/networks.py), in turns
in one process; the figure is the median over the turns. As in benchmarks/training_speed.py the ratio is that of the
times of one multiply-add. benchmarks/quality.py has the time at equal quality. Status 1 where ours is slower than any.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks import commands, networks  # noqa: E402
from benchmarks.peers import versions  # noqa: E402
from benchmarks.turns import in_turns  # noqa: E402
from diffusion.processor import settle  # noqa: E402

Draw = Callable[[int], object]
"""Draws so many images."""
CHANNELS = 3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    denoiser = NetworkDenoiser(VarianceExploding(), EDM(sd=0.5), network).to(DEVICE)
    model = GenerativeModel(denoiser, Identity(), ddim, Karras(steps))
    return lambda n: sample(model, shape, n, None, seed=0, batch_size=at_once or n)


def ours(match: str, size: int, steps: int) -> Draw:
    return untrained(networks.ours(match, size, CHANNELS), (CHANNELS, size, size), steps)


def diffusers(match: str, size: int, steps: int) -> Draw:
    from diffusers import DDIMPipeline, DDIMScheduler

    network = networks.diffusers(match, size, CHANNELS).eval()
    pipeline = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=1000)).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    return lambda n: pipeline(batch_size=n, num_inference_steps=steps, output_type="np")


def monai(match: str, size: int, steps: int) -> Draw:
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(num_inference_steps=steps)
    inferer, network = DiffusionInferer(scheduler), networks.monai(match, size, CHANNELS).to(DEVICE).eval()

    def draw(n: int) -> object:
        noise = torch.randn(n, CHANNELS, size, size, device=DEVICE)
        with torch.no_grad():
            return inferer.sample(input_noise=noise, diffusion_model=network, scheduler=scheduler, verbose=False).cpu()

    return draw


def denoising_diffusion_pytorch(match: str, size: int, steps: int) -> Draw:
    from denoising_diffusion_pytorch import GaussianDiffusion

    network = networks.denoising_diffusion_pytorch(match, size, CHANNELS)
    diffusion = GaussianDiffusion(network, image_size=size, timesteps=1000, sampling_timesteps=steps).to(DEVICE).eval()

    def draw(n: int) -> object:
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):
            return diffusion.sample(batch_size=n).cpu()

    return draw


TOOLS = {tool.__name__: tool for tool in (ours, diffusers, monai, denoising_diffusion_pytorch)}


def compare(match: str, size: int, steps: int, n: int, turns: int) -> dict[str, dict[str, float]]:
    draws = {name: tool(match, size, steps) for name, tool in TOOLS.items()}
    times = in_turns({name: partial(draw, n) for name, draw in draws.items()}, turns)
    rows = {name: {"images_per_second": n / seconds} for name, seconds in times.items()}
    for name, row in rows.items():
        row |= networks.counted(name, match, size, CHANNELS)
    networks.compare(rows, times)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=commands.count, nargs="+", default=[28, 64])
    parser.add_argument("--match", choices=networks.MATCHES, default="wide", help="the size of the networks")
    parser.add_argument("--evaluations", type=commands.count, default=10)
    parser.add_argument("--n", type=commands.count, default=32)
    parser.add_argument("--turns", type=commands.count, default=7)
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "sampling_speed.json")
    options = parser.parse_args()
    settle()
    torch.manual_seed(0)
    facts = {"versions": versions(TOOLS), "match": options.match}
    facts |= {"evaluations": options.evaluations, "n": options.n}
    commands.write(options.out, facts)
    rows = {}
    for size in options.sizes:
        rows[size] = compare(options.match, size, options.evaluations, options.n, options.turns)
        print(f"{size} x {size}, {options.n} images, {options.evaluations} evaluations each")
        for name, row in rows[size].items():
            print(f"{name:30}{row['images_per_second']:>8.2f} images/s{row['over_ours']:>7.2f} times ours", flush=True)
        commands.write(options.out, {**facts, "rows": rows})
    if faults := networks.faults(rows, margin=1):
        raise SystemExit("; ".join(faults))


if __name__ == "__main__":
    commands.run(main)
