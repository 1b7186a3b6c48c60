"""A mistake is told before anything is measured: one line, status 2."""

import os
from importlib import util
from unittest import mock

import pytest

from benchmarks import (
    commands,
    digits,
    few_shot,
    few_steps,
    floor,
    growth,
    latent,
    likelihood,
    memory,
    quality,
    sampling_speed,
    startup,
    steering,
    streaming,
    training_speed,
)


def said(capfd, benchmark, *words: str) -> str:
    given, told = mock.patch("sys.argv", ["x", *words]), mock.patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"})
    with given, told, pytest.raises(SystemExit) as ended:
        commands.run(benchmark.main)
    printed = capfd.readouterr()
    assert ended.value.code == 2 and printed.out == ""
    line = printed.err.splitlines()[-1]
    assert "error: " in line
    return line


@pytest.mark.parametrize(
    ("benchmark", "words", "why"),
    [
        (training_speed, "--turns 0", "above 0"),
        (training_speed, "--seconds x", "--seconds"),
        (training_speed, "--tools ours --data FOLDER/none.npz", "none.npz"),
        (training_speed, "--tools ours --out /proc/none/x.json", "/proc/none"),
        (training_speed, "--tools denoising_diffusion_pytorch --batch-size 8", "16 and more"),
        (quality, "--experiment digits_pixl", "did you mean digits_pixel"),
        (quality, "--tools denoising_diffusion_pytorch --batch-size 8", "16 and more"),
        (quality, "--minutes 0", "above 0"),
        (floor, "--network cnn", "--network"),
        (growth, "--turns 0", "above 0"),
        (memory, "--only large", "--only"),
        (startup, "--starts 0", "above 0"),
        (digits, "--n 0", "above 0"),
        (few_shot, "--wbc FOLDER/none.npz --runs-dir FOLDER", "none.npz"),
        (few_shot, "--runs-dir /proc/none", "/proc/none"),
        (few_steps, "--evaluations 0", "above 0"),
        (latent, "--repeats 0", "above 0"),
        (likelihood, "--runs-dir /proc/none", "/proc/none"),
        (steering, "dataset.path=none --folder FOLDER --minutes 0", "above 0"),
        (streaming, "--encoding jpg", "--encoding"),
    ],
)
def test_a_mistake(capfd, tmp_path, benchmark, words, why):
    assert why in said(capfd, benchmark, *words.replace("FOLDER", str(tmp_path)).split(), *_away(words, tmp_path))


def _away(words: str, tmp_path) -> list[str]:
    away = any(option in words for option in ("--out", "--runs-dir", "--folder"))
    return [] if away else ["--out", str(tmp_path / "x.json")]


@pytest.mark.parametrize("benchmark", [training_speed, sampling_speed, quality])
def test_a_library_that_is_not_installed(capfd, tmp_path, monkeypatch, benchmark):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    line = said(capfd, benchmark, "--out", str(tmp_path / "x.json"))
    assert "accelerate, denoising-diffusion-pytorch, diffusers, monai: not installed" in line
    assert 'pip install -e ".[benchmarks]"' in line
    assert not list(tmp_path.iterdir())
