"""The networks that are compared do the same work: counted for the library that the tests have."""

import pytest

from benchmarks.networks import MATCHES, counted
from diffusion.apps.config import CONF


@pytest.mark.parametrize(
    ("match", "size", "channels", "within"), [("tiny", 8, 1, 0.02), ("small", 28, 3, 0.04), ("wide", 64, 3, 0.005)]
)
def test_multiply_adds_are_matched(match, size, channels, within):
    mine, theirs = (counted(library, match, size, channels) for library in ("ours", "diffusers"))
    assert theirs["multiply_adds_m"] == pytest.approx(mine["multiply_adds_m"], rel=within)


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_networks_of_the_recipes_are_meant(name):
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONF / "network" / f"{name}.yaml")
    assert {key: config[key] for key in MATCHES[name].ours} == MATCHES[name].ours
