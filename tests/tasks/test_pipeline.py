"""Variants by a Stable Diffusion of the diffusers library: a tiny random one that is built here and saved."""

import json

import pytest
import torch

from diffusion.errors import UserError
from diffusion.tasks.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
PROMPTS = ["cat", "dog"]


def save_pipeline(folder, schedule="DDIMScheduler"):
    """A Stable Diffusion of a few thousand random weights, for pictures of 16 x 16."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=len(words) - 2,
                eos_token_id=len(words) - 1,
            )
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
        )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=getattr(diffusers, schedule)(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny")


@pytest.fixture(scope="module")
def pipeline(saved):
    return Pipeline(saved, PROMPTS, steps=10, scale=3.0)


def images(count=2, channels=3, size=12):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_strength_is_the_share_of_noise_under_their_schedule(pipeline):
    kept = pipeline.pipeline.scheduler.alphas_cumprod
    for strength in (0.3, 0.5, 0.8, 0.95):
        # The first of the steps that are taken begins within one step of where noise has that share.
        begin = round(pipeline.strength_of(strength) * 1000) - 1
        low, high = ((1 - kept[max(0, min(999, begin + d))]).sqrt().item() for d in (-100, 100))
        assert low <= strength <= high
    assert pipeline.strength_of(1.0) == 1 and pipeline.steps_of(1e-6) == 1


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_as_many_steps_are_taken_as_are_said(pipeline, strength, monkeypatch):
    asked = []
    forward = pipeline.pipeline.unet.forward
    monkeypatch.setattr(pipeline.pipeline.unet, "forward", lambda *a, **k: asked.append(0) or forward(*a, **k))
    pipeline(images(), strength, torch.tensor([0, 1]), [3, 4])
    assert len(asked) == pipeline.steps_of(strength)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_depends_on_its_seed_and_class_alone(pipeline, channels):
    given = images(channels=channels)
    both = pipeline(given, 0.7, torch.tensor([0, 1]), [3, 4])
    assert both.shape == given.shape and both.dtype == torch.float32 and both.isfinite().all()
    alone = pipeline(given[1:], 0.7, torch.tensor([1]), [4])
    torch.testing.assert_close(alone, both[1:], rtol=0, atol=1e-4)
    for other in (([0], [4]), ([1], [5])):
        assert (pipeline(given[1:], 0.7, torch.tensor(other[0]), other[1]) - alone).abs().max() > 1e-3


def test_no_network_and_nothing_else_is_needed_but_the_folder(saved, tmp_path):
    with pytest.raises(UserError, match=r"model_index\.json"):
        Pipeline(tmp_path, PROMPTS)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["x", "y"]}')
    with pytest.raises(UserError, match="could not be loaded"):
        Pipeline(tmp_path, PROMPTS)
    with pytest.raises(UserError, match="multiple"):
        Pipeline(saved, PROMPTS, size=17)


def test_a_schedule_that_says_nothing_of_noise_is_refused(tmp_path):
    folder = save_pipeline(tmp_path / "flow")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.save_pretrained(folder)
    with pytest.raises(UserError, match=r"alphas_cumprod|could not be loaded"):
        Pipeline(folder, PROMPTS)
