"""What a forward and a backward pass hold at most, and take: with checkpointing, and in patches.

    python benchmarks/memory.py          # three minutes on two cores

Beyond weights and gradients, as torch counts its tensors: by its allocator on a GPU, by its profiler on the CPU. Times
are medians of turns of one pass each. The networks are those of conf/network, without dropout.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from benchmarks import commands  # noqa: E402
from benchmarks.turns import in_turns  # noqa: E402
from diffusion.processor import settle  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = {
    "small": ("small", (32, 3, 64, 64)),
    "base": ("base", (2, 3, 64, 64)),
    "volumes": ("small", (4, 1, 32, 32, 32)),
}
"""The network, and the shape of a batch."""
WAYS = {"as it is": {}, "checkpointing": {"checkpointing": True}, "patch=2": {"patch": 2}}


def network_of(name: str, shape: tuple[int, ...], **keys: Any) -> torch.nn.Module:
    config = OmegaConf.load(ROOT / "conf" / "network" / f"{name}.yaml")
    of_images = {"in_channels": shape[1], "out_channels": shape[1], "size": shape[2:]}
    return instantiate(config, **of_images, **{"dropout": 0.0, **keys}).to(DEVICE)


def one_pass(network: torch.nn.Module, shape: tuple[int, ...]) -> None:
    answer = network(torch.randn(shape, device=DEVICE), torch.zeros(shape[0], device=DEVICE))
    answer.square().mean().backward()


def held(network: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes at the peak of a pass, above those before it: of a network whose gradients are there already."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one_pass(network, shape)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        one_pass(network, shape)
    now = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measured(name: str, shape: tuple[int, ...], turns: int) -> dict[str, dict[str, float]]:
    networks = {way: network_of(name, shape, **keys) for way, keys in WAYS.items()}
    seconds = in_turns({way: partial(one_pass, network, shape) for way, network in networks.items()}, turns)
    return {
        way: {"bytes": held(network, shape), "milliseconds": 1000 * seconds[way]} for way, network in networks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=commands.count, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "memory.json")
    options = parser.parse_args()
    commands.write(options.out, {})
    settle()
    rows = {}
    print(f"{'':32}" + "".join(f"{way:>26}" for way in WAYS))
    for case in options.only:
        rows[case] = measured(*CASES[case], options.turns)
        cells = (f"{row['bytes'] / 2**20:.0f} MiB {row['milliseconds']:.0f} ms" for row in rows[case].values())
        name, (count, _, *size) = CASES[case]
        title = f"{name}, {count} of {' x '.join(map(str, size))}"
        print(f"{title:32}" + "".join(f"{cell:>26}" for cell in cells), flush=True)
        commands.write(options.out, {"rows": rows})


if __name__ == "__main__":
    commands.run(main)
