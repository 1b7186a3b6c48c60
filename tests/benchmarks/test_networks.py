"""The networks that are compared do the same work: counted for the library that the tests have."""

import pytest

from benchmarks.networks import MATCHES, compare, counted, faults
from diffusion.apps.config import CONF


@pytest.mark.parametrize(
    ("match", "size", "channels", "within"), [("tiny", 8, 1, 0.02), ("small", 28, 3, 0.04), ("wide", 64, 3, 0.005)]
)
def test_multiply_adds_are_matched(match, size, channels, within):
    mine, theirs = (counted(library, match, size, channels) for library in ("ours", "diffusers"))
    assert theirs["multiply_adds_m"] == pytest.approx(mine["multiply_adds_m"], rel=within)


@pytest.mark.parametrize("match", MATCHES)
def test_parameters_are_matched_to_a_third(match):
    mine, theirs = (counted(library, match, 28, 3)["parameters_m"] for library in ("ours", "diffusers"))
    assert theirs == pytest.approx(mine, rel=0.3)


def test_the_ratio_is_that_of_the_times_of_one_multiply_add():
    rows = {"ours": {"multiply_adds_m": 100.0}, "other": {"multiply_adds_m": 50.0}}
    compare(rows, {"ours": 2.0, "other": 1.5})
    assert (rows["ours"]["over_ours"], rows["other"]["over_ours"]) == (1, 1.5)
    assert faults({28: rows}, margin=1.5) == []
    assert faults({28: rows}, margin=1.6) == ["other takes 1.50 times our time at 28"]


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_networks_of_the_recipes_are_meant(name):
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONF / "network" / f"{name}.yaml")
    assert {key: config[key] for key in MATCHES[name].ours} == MATCHES[name].ours
