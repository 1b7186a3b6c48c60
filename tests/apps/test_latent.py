"""Autoencoder, then diffusion in its latents: trained, sampled, resumed to the bit, and refused where it cannot be."""

import json
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch

from datamodules.arrays.split import SPLITS
from diffusion.callbacks.metrics_csv import read_columns, read_rows
from diffusion.extractors import domain_classifier
from diffusion.runs import Run, autoencoder_codec
from tests.commands import diffusion, refusal, train_py
from tests.training import AUTOENCODER, SMALL, assert_same_run, run_training, start_training

LATENT = [*SMALL, "experiment=digits_latent"]
STEPS = ["trainer.max_steps=6", "trainer.log_every_n_steps=2", "trainer.validate_every_n_steps=3"]
ADVERSARIAL = ["discriminator=patch", "discriminator.channels=8", "model.loss.adversarial_start=3"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def autoencoder(runs_dir):
    return run_training(runs_dir, *STEPS, base=AUTOENCODER)


@pytest.fixture(scope="module")
def latent(runs_dir, autoencoder):
    return run_training(runs_dir, *STEPS, f"codec.run={autoencoder}", base=LATENT)


def test_an_autoencoder_run_holds_what_a_latent_model_needs(autoencoder):
    checkpoint = torch.load(autoencoder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["latents"]["mean"].shape == checkpoint["latents"]["std"].shape == (4,)
    assert (autoencoder / "samples" / "step_0000006.png").is_file() and (autoencoder / "figures" / "loss.png").is_file()
    columns = read_columns(autoencoder / "metrics.csv")
    assert {"train/loss", "train/distance", "train/kl", "val/loss", "val/psnr"} <= set(columns)
    config = Run.open(autoencoder).config
    assert config.scheduler is None and config.network is None and config.codec is None


def test_the_stored_statistics_are_those_of_the_averaged_encoder(autoencoder):
    """Latents of the training images, drawn as the codec draws them, have mean 0 and standard deviation 1."""
    from datamodules.digits import Digits

    codec = Run.open(autoencoder).codec()
    images = Digits().split("train")[torch.arange(len(Digits().split("train")))]["image"]
    generator = torch.Generator().manual_seed(0)
    z = codec.draw(codec.moments(images), lambda shape: torch.randn(len(images), *shape, generator=generator))
    assert z.mean((0, 2, 3)).abs().max() < 0.05
    assert (z.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_a_latent_run_samples_images_of_the_data(latent, tmp_path):
    diffusion("sample", f"run={latent}", "n=3", f"out={tmp_path}", "device=cpu")
    images = np.load(tmp_path / "samples.npz")["images"]
    assert images.shape == (3, 8, 8, 1) and images.dtype == np.uint8
    assert (tmp_path / "trajectory.gif").is_file()
    assert (latent / "samples" / "denoising_0000006.png").is_file()


def test_a_latent_checkpoint_does_not_carry_the_autoencoder(latent):
    checkpoint = torch.load(latent / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"] and not any(name.startswith("codec") for name in checkpoint["state_dict"])


def test_the_latents_are_encoded_once(runs_dir, latent, autoencoder, monkeypatch):
    from diffusion.networks import Autoencoder

    monkeypatch.setattr(Autoencoder, "moments", lambda *_: pytest.fail("encoded again"))
    run_training(runs_dir, *STEPS, f"codec.run={autoencoder}", "run_id=second", base=LATENT)
    assert len(list((runs_dir / ".cache").glob("latents*_train.safetensors"))) == 1


def test_a_vector_quantiser_is_a_first_stage_too(tmp_path):
    run = run_training(tmp_path, *STEPS, "model=autoencoder_vq", base=AUTOENCODER)
    rows = read_rows(run / "metrics.csv")
    assert any(1 <= float(row["train/perplexity"]) <= 512 for row in rows if row["train/perplexity"])
    codec = Run.open(run).codec()
    codebook = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = {name.removeprefix("network."): value for name, value in codebook.items() if "bottleneck" in name}
    restored = codec.frozen.network.state_dict()
    assert kept and all(torch.equal(restored[name], value) for name, value in kept.items())
    latent = run_training(tmp_path, *STEPS, f"codec.run={run}", base=LATENT)
    diffusion("sample", f"run={latent}", "n=2", "device=cpu")


def test_the_discriminator_begins_at_its_step(tmp_path):
    run = run_training(tmp_path, *STEPS, *ADVERSARIAL, "trainer.log_every_n_steps=1", base=AUTOENCODER)
    rows = {int(row["step"]): row for row in read_rows(run / "metrics.csv") if row["train/loss"]}
    assert [step for step, row in rows.items() if row["train/discriminator"]] == [4, 5, 6]
    assert all(float(rows[step]["train/adaptive_weight"]) > 0 for step in (4, 5, 6))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert not any("discriminator" in name for name in checkpoint["ema"])


def test_accumulated_batches_train_an_autoencoder_alike(tmp_path):
    """Noise by the place in the global batch; the adaptive weight, a ratio of gradients of a batch, is left out."""
    runs = [
        run_training(tmp_path / str(n), *STEPS, f"trainer.accumulate_grad_batches={n}", base=AUTOENCODER)
        for n in (1, 2)
    ]
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adversarial", "vq", "latent"])
def test_a_killed_run_equals_the_uninterrupted_one(kind, autoencoder, tmp_path):
    plan = ["trainer.max_steps=40", "trainer.validate_every_n_steps=20", "checkpoint.every_n_steps=5"]
    base, extra = {
        "adversarial": (AUTOENCODER, ADVERSARIAL),
        "vq": (AUTOENCODER, ["model=autoencoder_vq", "experiment=digits_vae"]),
        "latent": (LATENT, [f"codec.run={autoencoder}"]),
    }[kind]
    name = "digits_latent" if kind == "latent" else "digits_vae"
    for folder, moments in (("whole", [None]), ("killed", ["checkpoint", (13, 0.0), (9, 0.1), None])):
        for moment in moments:
            process = start_training(tmp_path / folder, *plan, *extra, kill=moment, base=base)
            process.join()
            assert process.exitcode == (0 if moment is None else -signal.SIGKILL)
    assert_same_run(tmp_path / "killed" / name / "run", tmp_path / "whole" / name / "run")


def test_a_pretrained_autoencoder_is_a_codec_for_grey_images(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "vae")
    codec = ["codec=diffusers", f"codec.path={tmp_path / 'vae'}"]
    run = run_training(tmp_path, *STEPS, *codec, base=LATENT)
    diffusion("sample", f"run={run}", "n=2", "device=cpu")
    assert np.load(run / "sample" / "samples.npz")["images"].shape == (2, 8, 8, 1)
    diffusion("reconstruct", *codec, "dataset=digits", "n=10", "classifier=false", f"out={tmp_path / 'out'}")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["codec"]["latent_shape"] == [4, 4, 4]


@pytest.fixture
def volumes(tmp_path):
    """Balls of two sizes in 8 x 8 x 8 voxels, in MedMNIST's layout."""
    axis = np.arange(8) - 3.5
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(12) % 2
        arrays[f"{split}_images"] = np.stack([255 * (radius < 2 + k) for k in labels]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[:, None]
    np.savez(tmp_path / "volumes.npz", **arrays)
    return ["dataset=npz", f"dataset.path={tmp_path / 'volumes.npz'}", "batch_size=4"]


def test_volumes_go_all_the_way(volumes, tmp_path):
    autoencoder = run_training(tmp_path, *STEPS, *volumes, base=AUTOENCODER)
    latent = run_training(tmp_path, *STEPS, *volumes, f"codec.run={autoencoder}", base=LATENT)
    diffusion("sample", f"run={latent}", "n=2", "device=cpu")
    assert np.load(latent / "sample" / "samples.npz")["images"].shape == (2, 8, 8, 8, 1)
    diffusion("reconstruct", f"run={autoencoder}", "classifier=false")
    assert json.loads((autoencoder / "reconstruct" / "metrics.json").read_text())["compression"] == 16.0


def test_a_perceptual_loss_is_trained_once_and_held_to_its_fingerprint(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("diffusion.metrics.perceptual.domain_classifier", partial(domain_classifier, steps=3))
    plan = [*STEPS, "perceptual=classifier"]
    run = run_training(tmp_path, *plan, base=AUTOENCODER)
    assert float(read_rows(run / "metrics.csv")[0]["train/perceptual"]) > 0
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("perceptual" in name for name in checkpoint["state_dict"])
    assert len(list((tmp_path / ".cache").glob("classifier_perceptual_*"))) == 1
    monkeypatch.setattr("diffusion.metrics.perceptual.domain_classifier", partial(domain_classifier, steps=4))
    line = refusal(
        capfd, train_py, *AUTOENCODER, *plan, f"runs_dir={tmp_path}", "run_id=run", "trainer.max_steps=8"
    ).splitlines()[-1]
    assert "data.perceptual_fingerprint" in line


def test_reconstruct_says_what_compression_lost(autoencoder, tmp_path):
    diffusion("reconstruct", f"run={autoencoder}", f"out={tmp_path}", "n=100", "device=cpu", "classifier=false")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["compression"] == 4.0 and found["n"] == 100
    assert found["psnr"]["low"] <= found["psnr"]["value"] <= found["psnr"]["high"]
    assert {"ssim", "ms_ssim", "agreement"} <= set(found["left_out"])
    assert len(found["classes"]) == 10 and sum(c["n"] for c in found["classes"].values()) == 100
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 101
    assert (tmp_path / "reconstructions.png").is_file()


def test_reconstruct_takes_the_codec_of_a_latent_run(latent, autoencoder, tmp_path):
    for run in (latent, autoencoder):
        diffusion("reconstruct", f"run={run}", f"out={tmp_path / run.parent.name}", "n=20", "classifier=false")
    one, other = (
        json.loads((tmp_path / run.parent.name / "metrics.json").read_text()) for run in (latent, autoencoder)
    )
    assert one["codec"] == other["codec"] and one["psnr"] == other["psnr"]


def refused(capfd, *overrides):
    return refusal(capfd, train_py, *LATENT, *STEPS, *overrides)


def test_without_an_autoencoder_the_command_that_trains_it_is_given(capfd, tmp_path):
    line = refused(capfd, f"runs_dir={tmp_path}")
    assert "`python train.py experiment=digits_vae`" in line and "codec.run=RUN_DIR" in line
    line = refused(capfd, f"runs_dir={tmp_path}", "dataset=npz", "dataset.path=some/file.npz")
    assert "experiment=digits_vae dataset=npz dataset.path=some/file.npz`" in line


def test_codecs_that_do_not_fit_are_refused(capfd, tmp_path, autoencoder, latent):
    where = f"runs_dir={tmp_path}"
    assert "model=latent_ddpm needs a codec" in refused(capfd, where, "codec=identity")
    assert "use model=latent_ddpm" in refused(capfd, where, f"codec.run={autoencoder}", "model=pixel_ddpm")
    assert "is not the run of an autoencoder" in refused(capfd, where, f"codec.run={latent}")
    assert "codec.run=nowhere does not exist" in refused(capfd, where, "codec.run=nowhere")
    assert "3 channels" in refused(capfd, where, f"codec.run={autoencoder}", "dataset=tissue")
    np.savez(tmp_path / "large.npz", **{f"{s}_images": np.eye(12, dtype=np.uint8)[None].repeat(4, 0) for s in SPLITS})
    large = refused(capfd, where, f"codec.run={autoencoder}", "dataset=npz", f"dataset.path={tmp_path}/large.npz")
    assert "images of 12x12 do not match the autoencoder, which learnt from 8x8" in large
    assert "augmentation=none" in refused(capfd, where, f"codec.run={autoencoder}", "augmentation=affine")
    assert not any(tmp_path.glob("*/*/config.yaml"))


def test_parts_that_a_model_does_not_have_are_refused(capfd, tmp_path):
    for override, part in (("scheduler=cosine", "scheduler"), ("network.channels=4", "network")):
        line = refusal(capfd, train_py, *AUTOENCODER, *STEPS, f"runs_dir={tmp_path}", override)
        assert line.startswith(f"{override}: this model has no {part}")
    line = refusal(capfd, train_py, *SMALL, *STEPS, f"runs_dir={tmp_path}", "discriminator=patch")
    assert "this model has no discriminator" in line


def test_an_autoencoder_is_not_sampled_and_pixels_are_not_reconstructed(capfd, autoencoder, tmp_path):
    assert "python -m diffusion reconstruct" in refusal(capfd, diffusion, "sample", f"run={autoencoder}")
    pixel = run_training(tmp_path, "trainer.max_steps=1")
    assert "pixel space" in refusal(capfd, diffusion, "reconstruct", f"run={pixel}")
    assert "reconstruct needs run=RUN_DIR" in refusal(capfd, diffusion, "reconstruct")
    assert "compresses nothing" in refusal(capfd, diffusion, "reconstruct", "codec=identity", "dataset=digits")
    assert "codec.path=" in refusal(capfd, diffusion, "reconstruct", "codec=diffusers", "dataset=digits")
    assert "n=many: give a whole number" in refusal(capfd, diffusion, "reconstruct", f"run={autoencoder}", "n=many")
    assert "leave codec out" in refusal(capfd, diffusion, "reconstruct", f"run={autoencoder}", "codec=diffusers")


@pytest.fixture
def copies(autoencoder, latent, tmp_path):
    """Both runs, to be damaged; the latent one still begins from the first copy."""
    shutil.copytree(autoencoder, tmp_path / "digits_vae" / "run")
    return tmp_path / "digits_vae" / "run", latent


def rewrite(run, change):
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_a_changed_autoencoder_is_refused(capfd, copies, runs_dir):
    copy, latent = copies
    moved = f"codec.run={copy}"
    diffusion("sample", f"run={latent}", "n=1", moved, "overwrite=true")  # it has moved, but is the same
    rewrite(copy, lambda content: next(iter(content["ema"].values())).view(-1)[0].add_(1e-3))
    assert "is not the one with which this run began" in refusal(
        capfd, diffusion, "sample", f"run={latent}", moved, "overwrite=true"
    )
    line = refused(capfd, f"runs_dir={runs_dir}", "run_id=run", moved, "trainer.max_steps=8")
    assert "is not the one with which this run began" in line


def test_an_autoencoder_without_statistics_or_collapsed_is_refused(capfd, copies, tmp_path):
    copy, _ = copies
    rewrite(copy, lambda content: content["latents"]["std"].zero_())
    assert "collapsed" in refused(capfd, f"runs_dir={tmp_path}", f"codec.run={copy}")
    rewrite(copy, lambda content: content.pop("latents"))
    assert "no mean and standard deviation" in refused(capfd, f"runs_dir={tmp_path}", f"codec.run={copy}")


def test_latents_that_are_not_finite_are_refused(capfd, copies, tmp_path):
    copy, _ = copies
    rewrite(copy, lambda content: content["ema"]["encoder.output.bias"].fill_(float("nan")))
    line = refused(capfd, f"runs_dir={tmp_path}", f"codec.run={copy}")
    assert "NaN or infinity" in line


def test_an_autoencoder_of_other_data_is_used_with_a_warning(autoencoder, tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", **{f"{split}_images": images for split in SPLITS})
    other = ["dataset=npz", f"dataset.path={tmp_path / 'other.npz'}"]
    run_training(tmp_path, *STEPS, *other, f"codec.run={autoencoder}", base=LATENT)
    assert "learnt from other data" in caplog.text


def test_an_unfinished_autoencoder_is_used_with_a_warning(autoencoder, caplog, tmp_path):
    autoencoder_codec(str(autoencoder))
    assert not caplog.records
    shutil.copytree(autoencoder, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace("max_steps: 6", "max_steps: 60"))
    autoencoder_codec(str(tmp_path / "run"))
    assert "is not finished: its weights of step 6" in caplog.text
