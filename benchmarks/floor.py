"""How far a training step is from the least that its operations and bytes take on this machine, and where it goes.

    python benchmarks/floor.py           # the U-Net base at 64 x 64: a minute on two cores

The floor is a sum over the convolutions, matrix products and attentions of the forward and backward pass, each the
longer of its operations at the rate of a large matrix product and its bytes at the rate of a large copy, both measured
first, on the same device and in the same precision; and over the weights, of what AdamW and an average read and write.
It takes all else, norms, activations, sums, casts, to be done on the way and free: no program reaches it. The step is
that of a bare loop in float32 on the CPU and bfloat16 on a GPU (benchmarks/overhead.py has the framework's share). Then
the ten kernels that take the longest. Status 1 where a step on a GPU takes more than 2.5 times the floor.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import commands  # noqa: E402
from benchmarks.memory import DEVICE, network_of  # noqa: E402
from benchmarks.turns import in_turns  # noqa: E402
from diffusion.compilation import MODES, compiled  # noqa: E402
from diffusion.processor import settle  # noqa: E402

ON_GPU = DEVICE.type == "cuda"
PRECISION = torch.bfloat16 if ON_GPU else torch.float32
LONGEST = 2.5
OF_OPTIMIZER = 9
"""Reads and writes of each weight: of it, its two moments and its average both, of its gradient the one."""


class Rates(NamedTuple):
    """Floating-point operations, and bytes, a second."""

    operations: float
    bytes: float


class Work(NamedTuple):
    operations: int
    bytes: int

    def seconds(self, rates: Rates) -> float:
        return max(self.operations / rates.operations, self.bytes / rates.bytes)


class Counter(TorchDispatchMode):
    """Keeps the work of all that multiplies and adds, a multiplication and an addition being two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func.overloadpacket):
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.works.append(Work(count(*args, **kwargs, out_val=out), size))
        return out


def rates(turns: int = 10) -> Rates:
    """Of this device: a product of two square matrices in PRECISION, and a copy."""
    side, many = (8192, 2**28) if ON_GPU else (2048, 2**26)
    left, right = (torch.randn(side, side, device=DEVICE, dtype=PRECISION) for _ in range(2))
    given = torch.randn(many, device=DEVICE)
    found = torch.empty_like(given)
    calls = {"product": partial(torch.matmul, left, right), "copy": partial(found.copy_, given)}
    seconds = in_turns(calls, turns)
    return Rates(2 * side**3 / seconds["product"], 2 * given.nbytes / seconds["copy"])


def passes(network: torch.nn.Module, x: torch.Tensor) -> None:
    """The forward and backward pass of a squared error."""
    autocast = torch.autocast(DEVICE.type, PRECISION) if ON_GPU else nullcontext()
    with autocast:
        answer = network(x, torch.zeros(len(x), device=DEVICE))
    (answer.float() - x).square().mean().backward()


def floor(network: torch.nn.Module, x: torch.Tensor, rates: Rates) -> tuple[float, list[Work]]:
    """Seconds, and the works that they are of; weights are taken to be in float32."""
    with Counter() as counter:
        passes(network, x)
    network.zero_grad()
    weights = sum(parameter.numel() for parameter in network.parameters())
    optimizer = OF_OPTIMIZER * 4 * weights / rates.bytes
    return optimizer + sum(work.seconds(rates) for work in counter.works), counter.works


def stepping(network: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """What makes a step of training: both passes, AdamW, and an average of the weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]

    def step() -> None:
        passes(network, x)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [weight.detach() for weight in weights], 0.001)

    return step


def kernels(step: Callable[[], None], steps: int = 3) -> list[dict[str, Any]]:
    """The ten that take the longest by themselves: name, milliseconds a step, calls a step, share of all."""
    activities = [torch.profiler.ProfilerActivity.CUDA if ON_GPU else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
    time_of = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    # What is called by the optimizer is named besides, and is no kernel.
    found = [event for event in profiler.key_averages() if not event.key.startswith("Optimizer.")]
    events = sorted(found, key=lambda event: -getattr(event, time_of))
    total = sum(getattr(event, time_of) for event in events)
    return [
        {
            "name": event.key,
            "milliseconds": getattr(event, time_of) / 1000 / steps,
            "calls": event.count / steps,
            "share": getattr(event, time_of) / total,
        }
        for event in events[:10]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("tiny", "small", "base"), default="base", help="of conf/network")
    parser.add_argument("--size", type=commands.count, default=64)
    parser.add_argument("--batch-size", type=commands.count, default=64 if ON_GPU else 2)
    parser.add_argument("--compile", choices=MODES)
    parser.add_argument("--turns", type=commands.count, default=20 if ON_GPU else 5)
    parser.add_argument("--out", type=Path, default=commands.FOLDER / "floor.json")
    options = parser.parse_args()
    commands.write(options.out, {})
    settle()
    torch.manual_seed(0)
    network = network_of(options.network, (options.batch_size, 3, options.size, options.size))
    x = torch.randn(options.batch_size, 3, options.size, options.size, device=DEVICE)
    found = rates()
    least, works = floor(network, x, found)
    with compiled([network], options.compile, "--compile"):
        step = stepping(network, x)
        seconds = in_turns({"step": step}, options.turns)["step"]
        longest = kernels(step)
    print(f"{found.operations / 1e12:.3f} tera-operations and {found.bytes / 1e9:.1f} GB a second")
    print(f"a step {1000 * seconds:.1f} ms, {seconds / least:.2f} times the floor of {1000 * least:.1f} ms")
    for kernel in longest:
        cost = f"{kernel['share']:>6.1%}{kernel['milliseconds']:>10.2f} ms{kernel['calls']:>7.0f}x"
        print(f"{cost}  {kernel['name'][:80]}")
    facts = {
        "network": options.network,
        "size": options.size,
        "batch_size": options.batch_size,
        "compile": options.compile,
        "precision": str(PRECISION),
        "rates": found._asdict(),
        "operations": sum(work.operations for work in works),
        "bytes": sum(work.bytes for work in works),
        "floor_seconds": least,
        "step_seconds": seconds,
        "kernels": longest,
    }
    commands.write(options.out, facts)
    if ON_GPU and seconds > LONGEST * least:
        raise SystemExit(f"a step takes {seconds / least:.2f} times the floor")


if __name__ == "__main__":
    commands.run(main)
