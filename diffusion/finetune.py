"""A run that begins with another's weights: what it takes of them, what is frozen, and how fast each layer learns."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from diffusion.errors import UserError
from diffusion.networks.layers import locked_of
from diffusion.networks.lora import is_update, plain_name

log = logging.getLogger(__name__)

LABEL = "embedding.label.weight"
"""How the name of the classes' tokens ends: (width, classes + 1), the last column for no class."""


def begin(trained: nn.Module, weights: Mapping[str, Tensor], then: Sequence[str], now: Sequence[str]) -> list[int]:
    """Give `trained` the weights of an earlier run; the numbers of the classes that are new to it.

    then, now: names of the classes that the earlier network was told, and that this one is told. A class of the same
    name keeps its token, a new one begins with the mean of all tokens, or at 0 where there was none: then the untold
    network answers as it did. Raises UserError where the networks differ.
    """
    new = [place for place, name in enumerate(now) if name not in then]
    mine = trained.state_dict()
    for name, value in mine.items():
        if is_update(name):
            continue
        given = weights.get(plain_name(name))
        if name.endswith(LABEL):
            value.copy_(_tokens(given, value, then, now))
        elif given is None or given.shape != value.shape:
            raise UserError(
                f"finetune.from: its network does not fit these data: {plain_name(name)} is "
                f"{'missing' if given is None else tuple(given.shape)}, and {tuple(value.shape)} is needed: choose "
                "images of the same channels, and network and control as there"
            )
        else:
            value.copy_(given)
    names = {plain_name(name) for name in mine}
    # What is told in the embedding, classes or an augmentation, may be told no longer.
    lost = [name for name in weights if name not in names and ".embedding." not in name]
    if lost:
        raise UserError(
            f"finetune.from: its network has {len(lost)} parameters, as {lost[0]}, for which there is no place at this "
            "size of images: give the size that it learnt from, as by dataset.size"
        )
    trained.load_state_dict(mine)
    return new


def _tokens(given: Tensor | None, like: Tensor, then: Sequence[str], now: Sequence[str]) -> Tensor:
    if given is None or given.shape[0] != like.shape[0]:
        return torch.zeros_like(like)
    mean = given[:, :-1].mean(1)
    columns = [given[:, then.index(name)] if name in then else mean for name in now]
    return torch.stack([*columns, given[:, -1]], 1)


def choose(trained: nn.Module, unfreeze: str | None, new: Sequence[int], updates: bool) -> None:
    """Freeze all of `trained` but what `unfreeze` names, low-rank updates, and the tokens of new classes.

    unfreeze: all; last:N, the last N layers of the network; token, new classes alone; or a pattern of parameters'
        names, as *.attention.*; None: all, or with `updates` these alone. Raises UserError where it names nothing.
    """
    own = {name for name, p in trained.named_parameters() if updates and is_update(name)}
    chosen = own | _named(trained, unfreeze or ("token" if updates else "all"), new)
    locked = locked_of(trained)
    for name, p in trained.named_parameters():
        p.requires_grad_(name in chosen and id(p) not in locked)
    for name, p in trained.named_parameters():
        if new and name.endswith(LABEL) and name not in chosen:
            p.requires_grad_(True)
            kept = torch.zeros(p.shape[1])
            kept[list(new)] = 1
            # The other tokens get no gradient, and `layered` no decay: they stay as they are, to the bit.
            p.register_hook(lambda gradient, kept=kept: gradient * kept.to(gradient))
            p.partly = True
    count, total = (sum(p.numel() for p in trained.parameters() if p.requires_grad or every) for every in (False, True))
    log.info("fine-tuning: %d of %d parameters learn", count, total)


def _named(trained: nn.Module, unfreeze: str, new: Sequence[int]) -> set[str]:
    names = {name for name, _ in trained.named_parameters()}
    said = f"finetune.unfreeze={unfreeze}"
    if unfreeze == "all":
        return names
    if unfreeze == "token":
        return set()
    if unfreeze.startswith("last:"):
        stages = layers(trained.network)
        count = unfreeze.removeprefix("last:")
        if not count.isdigit() or not 1 <= int(count) <= len(stages):
            raise UserError(f"{said}: give last:N, N from 1 to {len(stages)}, the network's layers")
        last = {id(p) for layer in stages[-int(count) :] for p in layer.parameters()}
        return {name for name, p in trained.named_parameters() if id(p) in last}
    found = {name for name in names if fnmatchcase(name, unfreeze)}
    if not found:
        some = ", ".join(sorted(names)[:: max(1, len(names) // 4)])
        raise UserError(f"{said} names no parameter: give all, last:N, token, or a pattern of names such as {some}")
    return found


def layers(network: nn.Module) -> list[nn.Module]:
    """The parts of a network that hold parameters, in the order in which it lists them, lists of parts taken apart.

    A network that has another order says so by its own `layers`.
    """
    if hasattr(network, "layers"):
        return network.layers()
    if hasattr(network, "network"):
        return layers(network.network)
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, (nn.ModuleList, nn.Sequential)) else [child]
    return [layer for layer in found if any(True for _ in layer.parameters())]


def layered(
    make: Callable[[Iterable], torch.optim.Optimizer], trained: nn.Module, decay: float, token_lr: float
) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """An optimizer of the parameters that learn: the last layer at the full rate, each before it at `decay` times that.

    Tokens of new classes that learn beside frozen ones do so at `token_lr`: one vector has far to go. Source: Howard
    and Ruder 2018, section 3.2 (discriminative fine-tuning; there decay = 1 / 2.6). Raises UserError for a decay
    outside (0, 1], or a rate that is not above 0.
    """
    if not isinstance(decay, (int, float)) or not 0 < decay <= 1:
        raise UserError(f"finetune.lr_decay={decay}: give a number above 0, up to 1 (all layers alike)")
    if not isinstance(token_lr, (int, float)) or not 0 < token_lr < math.inf:
        raise UserError(f"finetune.token_lr={token_lr}: give a learning rate above 0, as 0.1")

    def optimizer(_: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        depth = {}
        for place, layer in enumerate(reversed(layers(trained.network))):
            depth.update({id(p): place for p in layer.parameters()})
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for p in trained.parameters():
            if p.requires_grad:
                groups.setdefault((depth.get(id(p), 0), getattr(p, "partly", False)), []).append(p)
        made = make([{"params": found} for found in groups.values()])
        for group, (place, partly) in zip(made.param_groups, groups, strict=True):
            group["lr"] = group["lr"] * decay**place
            if partly:
                group["lr"], group["weight_decay"] = token_lr, 0.0
        return made

    return optimizer
