"""ControlNet: a trained network is steered by an image of the same places, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.denoiser import Cond
from diffusion.errors import UserError
from diffusion.networks.concatenated import Fold, control_of
from diffusion.networks.layers import conv, pad_to_multiple, patches, zero
from diffusion.networks.unet import UNet


class ControlNet(nn.Module):
    """The trunk, locked, whose way up is given skips + scale zero(skips of a trainable copy that sees the control).

    The copy is of the way down and the middle. It begins with what `input` makes of x plus an embedding of the control,
    whose last layer is zero, as is the 1 x 1 convolution behind each of its answers: untrained, the answer is the
    trunk's, to the bit. Source: Zhang et al. 2023, section 3.1 and figure 3.

    Args:
        trunk: (in_channels, out_channels, size, classes, augmentation) -> a U-Net of this project.
        control: (P, *S) of the control; see `Fold`.
        base: where the trunk's weights come from; whoever makes the network loads them.
        the others: see `UNet`.

    Raises UserError for another trunk, or without a control.
    """

    takes_control = True

    def __init__(
        self,
        trunk: Callable[..., UNet] | None,
        size: Sequence[int],
        control: Sequence[int] | None = None,
        base: str | None = None,
        **options: Any,
    ):
        super().__init__()
        if trunk is None:
            raise UserError("network=controlnet needs network.base=RUN_DIR, the run that is to be steered")
        if control is None:
            raise UserError("network=controlnet needs a control: control=mask, canny, low_resolution, ...")
        self.trunk = trunk(size=size, **options)
        if not isinstance(self.trunk, UNet):
            raise UserError("network.base: its network is no U-Net of this project, with a way down to copy")
        self.trunk.requires_grad_(False).eval()
        self.copy = deepcopy(self.trunk).requires_grad_(True)
        del self.copy.up, self.copy.norm, self.copy.output
        convolution, width = conv(len(size)), self.trunk.input.out_channels
        self.fold = Fold(control, size)
        self.hint = nn.ModuleList(
            [
                patches(len(size), self.fold.channels, width, self.trunk.patch),
                zero(convolution(width, width, 3, padding=1)),
            ]
        )
        self.zeros = nn.ModuleList(zero(convolution(c, c, 1)) for c in self.trunk.skip_channels)
        middle = self.trunk.skip_channels[-1]
        self.zero_middle = zero(convolution(middle, middle, 1))

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Take the trunk's weights, and copy them. Raises UserError where they are of another network."""
        wanted = {name: value.shape for name, value in self.trunk.state_dict().items()}
        given = {name: value.shape for name, value in weights.items()}
        if wanted != given:
            name = next(name for name in sorted(wanted | given) if wanted.get(name) != given.get(name))
            raise UserError(
                f"network.base: its network does not fit these data ({name} is {_shape(given.get(name))} there, and "
                f"{_shape(wanted.get(name))} here): choose images of the same size, channels and classes"
            )
        self.trunk.load_state_dict(weights)
        mine = self.copy.state_dict()
        self.copy.load_state_dict({name: value for name, value in weights.items() if name in mine})

    @property
    def locked(self) -> list[nn.Parameter]:
        """What never learns."""
        return list(self.trunk.parameters())

    def layers(self) -> list[nn.Module]:
        """What learns, from the input on."""
        way = [self.copy.embedding, self.copy.input, *self.hint, *self.copy.down, *self.copy.middle]
        return [*way, *self.zeros, self.zero_middle]

    def train(self, mode: bool = True) -> ControlNet:
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> Tensor:
        """x (B, in_channels, *size), c_noise (B,) -> (B, out_channels, *size).

        cond["control"] is (B, P, *S), cond["scale"] (B,) how much it counts, 1 where it is not given.
        """
        hint, _ = pad_to_multiple(self.fold(control_of(cond)).to(x.dtype), self.trunk.factor)
        x, crop = pad_to_multiple(x, self.trunk.factor)
        embedding = self.trunk.embedding(c_noise, cond)
        middle, skips = self.trunk.encode(self.trunk.input(x), embedding)
        seen = self.copy.input(x) + self.hint[1](F.silu(self.hint[0](hint)))
        steered, steers = self.copy.encode(seen, self.copy.embedding(c_noise, cond))
        scale = cond["scale"].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) if "scale" in cond else 1.0
        skips = [skip + scale * layer(steer) for skip, layer, steer in zip(skips, self.zeros, steers, strict=True)]
        return self.trunk.decode(middle + scale * self.zero_middle(steered), skips, embedding)[crop]


def _shape(shape: Sequence[int] | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
