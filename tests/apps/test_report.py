"""The page that `report` makes: what is on it, what is not there yet, and that it opens in a browser by itself."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from diffusion.apps.report.charts import ends_of, gauge
from diffusion.apps.report.pictures import ANIMATION, MOST_BYTES, frames_of, from_file, reduced, reduction
from diffusion.apps.report.results import number, with_interval
from diffusion.apps.report.sections import other_weights
from diffusion.apps.report.tables import left_out
from diffusion.runs import Run
from tests.commands import diffusion, refusal
from tests.training import AUTOENCODER, run_training

ARMS = ["real", "augmented", "synthetic", "both", "synthetic_then_real"]
RECEIPT = {
    "generated": {"run": "RUN", "step": 6, "sampler": {"name": "dpmpp_2m"}, "grid": {"name": "Karras", "steps": 12}},
    "data": {"source": "digits", "fingerprint": "b8cc126cb9a1e9c8", "images": {"train": 808, "val": 90, "test": 899}},
    "extractor": {"name": "domain", "weights": "0123456789abcdef"},
    "seconds": {"total": 41.2},
}

pytestmark = pytest.mark.slow


def figure(value: float, spread: float, n: int = 500, **more: object) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n, **more}


def compared(scale: float, n: int = 500) -> dict:
    """Figures of two sets, as evaluate writes them; `scale` moves them all."""
    values = {"fid": (14.26, 1.91), "kid": (0.00712, -0.00031), "precision": (0.8137, 0.932), "recall": (0.6424, 0.907)}
    values |= {"density": (0.7719, 1.013), "coverage": (0.7052, 0.958), "sliced_wasserstein": (0.0523, 0.0214)}
    return {
        name: {
            split: figure(value * scale, abs(value) * 0.05, n, m=899, floor=figure(floor, abs(floor) * 0.08, n))
            for split in ("test", "train")
        }
        for name, (value, floor) in values.items()
    }


def evaluation(names: list[str]) -> dict:
    own = {part: figure(value, 0.08) for part, value in (("generated", 7.31), ("train", 8.98), ("test", 8.72))}
    classes = {name: {"n": 50, "metrics": compared(1 - 0.13 * (k * 7 % 10) / 10, 50)} for k, name in enumerate(names)}
    for of in classes.values():
        del of["metrics"]["sliced_wasserstein"]
    left_out = {"ms_ssim": "a side of 8 pixels is smaller than the window of 11"}
    if classes:
        del classes[names[-1]]["metrics"]["fid"]
        left_out[f"{names[-1]}: fid"] = "it takes more images than features"
    metrics = compared(1.0) | {"inception_score": own}
    return {"n": 500, "metrics": metrics, "classes": classes, "left_out": left_out, "receipt": RECEIPT}


def audit(verdict: str | None) -> dict:
    return {
        "n": 1000,
        "copies": figure(0.0123, 0.006, 1000),
        "held_out_flagged": figure(0.0101, 0.005, 899),
        "pixel": {"threshold": 0.4321, "median": 1.042},
        "feature": {"threshold": 0.3987, "median": 1.117},
        "membership": figure(0.5432, 0.02, 899),
        "max_copies": None if verdict is None else 0.01,
        "verdict": verdict,
        "left_out": {},
        "receipt": RECEIPT,
    }


def utility() -> dict:
    budgets = {}
    for budget, start in {"10": 0.61, "50": 0.83, "all": 0.952}.items():
        gains = dict(zip(ARMS, [0.0, 0.031, -0.08, 0.053, 0.002], strict=True))
        arms = {
            arm: {
                "accuracy": figure(start + gain, 0.015),
                "auroc": figure(min(start + 0.1 + gain, 0.999), 0.01),
                "recall": {},
            }
            for arm, gain in gains.items()
        }
        differences = {
            arm: {
                "accuracy": figure(gain, 0.012, p=0.0004 if abs(gain) > 0.012 else 0.713),
                "auroc": figure(gain / 2, 0.02, p=0.213),
            }
            for arm, gain in gains.items()
            if arm != "real"
        }
        budgets[budget] = {"images": {"real": 100}, "arms": arms, "differences": differences}
    return {
        "n": 2000,
        "seeds": 3,
        "steps": 300,
        "arms": ARMS,
        "budgets": budgets,
        "left_out": {},
        "receipt": RECEIPT,
    }


def write(folder: Path, found: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(found))
    return folder


def write_cases(path: Path, n: int, middle: float) -> None:
    ratios = np.random.default_rng(n).lognormal(np.log(middle), 0.25, (n, 2))
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "label", "flagged", "ratio", "nearest_train_id", "pixel_ratio", "feature_ratio"])
        rows.writerows(
            [i, i % 10, 0, f"{min(pair):.6g}", 0, *(f"{r:.6g}" for r in pair)] for i, pair in enumerate(ratios)
        )


def fake_results(run: Path, names: list[str], verdict: str | None = "fail") -> None:
    """All that evaluate, audit and utility would have written."""
    write(run / "evaluate", evaluation(names))
    folder = write(run / "audit", audit(verdict))
    write_cases(folder / "cases.csv", 1000, 1.05)
    write_cases(folder / "held_out.csv", 899, 1.0)
    noise = np.random.default_rng(0).integers(0, 256, (120, 400), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "pairs.png")
    write(run / "utility", utility())


VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """A page that a report has made, taken apart; every element must be closed in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.words))
        self.sections = [of["id"] for tag, of in self.elements if tag == "section"]
        self.images = [of for tag, of in self.elements if tag == "img"]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        self.words.append(" ")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def frames(self) -> dict[str, list[str]]:
        (found,) = re.findall(r'<script type="application/json" id="frames">(.*?)</script>', self.source)
        return json.loads(found)


def report(run: Path, *words: str) -> Page:
    diffusion("report", f"run={run}", "device=cpu", "n=2", *words)
    out = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    return Page((Path(out[0]) if out else run) / "report.html")


def picture(source: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def npz_run(folder: Path, shape: tuple[int, ...], *overrides: str) -> Path:
    """A run on data without labels."""
    rng = np.random.default_rng(0)
    sizes = {"train": 32, "val": 4, "test": 4}
    arrays = {f"{split}_images": rng.integers(0, 256, (n, *shape), dtype=np.uint8) for split, n in sizes.items()}
    np.savez(folder / "data.npz", **arrays)
    words = ["dataset=npz", f"dataset.path={folder / 'data.npz'}", "network.multipliers=[1,1]", "augmentation=none"]
    return run_training(folder, *STEPS, *words, *overrides)


STEPS = ["trainer.max_steps=6", "trainer.log_every_n_steps=2", "trainer.validate_every_n_steps=3"]
DIGITS = [str(k) for k in range(10)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return run_training(tmp_path_factory.mktemp("runs"), *STEPS)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, to be filled or damaged."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits_pixel" / "run"))


@pytest.fixture(scope="module")
def full(trained, tmp_path_factory) -> Path:
    """A run with all results and its page."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("full") / "digits_pixel" / "run"))
    fake_results(run, DIGITS)
    report(run)
    return run


def test_the_page_holds_every_part_in_its_order(full):
    page = Page(full / "report.html")
    order = ["samples", "denoising", "recipe", "training", "metrics", "audit", "utility", "receipts"]
    assert page.sections == order
    assert "digits_pixel / run" in page.text and "trained: 6 steps" in page.text
    assert "audit: fail, 1.23% (0.63% to 1.83%) flagged" in page.text
    assert "FID: 14.3, above the floor of 1.91" in page.text
    linked = [of["href"].removeprefix("#") for tag, of in page.elements if tag == "a"]
    assert linked == order
    assert len(page.source) < 5_000_000


def test_the_figures_of_the_tasks_are_on_the_page(full):
    text = Page(full / "report.html").text
    assert "test 14.3 (13.5 to 15.0) 1.91 (1.76 to 2.06) 500 / 899" in text
    assert "generated 7.31 (7.23 to 7.39)" in text
    assert "Left out: ms_ssim (a side of 8 pixels is smaller than the window of 11); 9: fid" in text
    assert "0.543 (0.523 to 0.563)" in text and "median 1.04, threshold 0.432" in text
    assert "The limit was 1.00%, so the audit fails." in text
    assert "Higher: augmented (with 10, 50, all); both (with 10, 50, all)." in text
    assert "Lower: synthetic (with 10, 50, all)." in text and "No clear difference: synthetic then real" in text
    assert "augmented 0.0310 (0.0190 to 0.0430) < 0.001 0.0155 (\N{MINUS SIGN}0.0045 to 0.0355) 0.213" in text
    assert '"weights": "0123456789abcdef"' in text  # of the extractor, in the receipt
    assert "It is made by" not in text  # nothing is missing


def test_bold_is_what_differs(full):
    source = (full / "report.html").read_text()
    assert '<td class="bold">\N{MINUS SIGN}0.0800' in source and '<td class="bold">0.0020' not in source


def test_every_image_says_what_it_shows(full):
    page = Page(full / "report.html")
    assert len(page.images) == 10 * 2 + 2 + 1
    assert all(len(of["alt"]) > 10 for of in page.images)
    assert {"2 generated images of class 3", "2 real training images of class 3"} <= {of["alt"] for of in page.images}
    charts = [of for tag, of in page.elements if tag == "svg" and of.get("role") == "img"]
    assert len(charts) == 2 + 2 + 2 + 2
    assert all(of["aria-label"] for of in charts)
    assert any("threshold 0.432" in of["aria-label"] for of in charts)


def test_the_page_asks_for_nothing_from_elsewhere(full):
    page = Page(full / "report.html")
    for _, of in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert of.get(name, "#").startswith(("#", "data:")), of
    assert "http" not in re.sub(r"http-equiv", "", page.source)
    assert not re.search(r"@import|url\((?!#)", page.source)
    (policy,) = [of["content"] for tag, of in page.elements if "http-equiv" in of]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_what_refers_to_them_finds_them(full):
    page = Page(full / "report.html")
    ids = [of["id"] for _, of in page.elements if "id" in of]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]+)', page.source)
    assert references and set(references) <= set(ids)


def test_charts_take_their_colours_from_the_page(full):
    source = (full / "report.html").read_text()
    assert "currentColor" in source and "var(--series-0)" in source
    assert not re.search(r"#0102\w\w", source)


def test_the_trajectory_has_a_frame_for_each_step_and_ends_at_the_samples(full):
    page = Page(full / "report.html")
    frames = page.frames()
    steps = Run.open(full).config.grid.steps
    assert len(frames["noisy"]) == len(frames["means"]) == len(frames["names"]) == steps
    assert frames["names"][-1].startswith(f"step {steps} of {steps}") and frames["names"][-1].endswith("= 0")
    assert len(set(frames["noisy"])) == steps
    (last,) = [of["src"] for of in page.images if "on their way" in of["alt"]]
    assert last == frames["noisy"][-1]
    # The same images as in the gallery: the first is of class 0.
    (gallery,) = [of["src"] for of in page.images if of["alt"] == "2 generated images of class 0"]
    first = [picture(source)[:8, :8] for source in (last, gallery)]
    assert np.abs(first[0].astype(int) - first[1]).max() <= 1


def test_the_samples_are_those_that_sample_draws(full, tmp_path):
    page = Page(full / "report.html")
    diffusion("sample", f"run={full}", f"out={tmp_path / 'sample'}", "n=20", "device=cpu")
    with np.load(tmp_path / "sample" / "samples.npz") as arrays:
        wanted = [arrays["images"][k][..., 0] for k in (3, 13)]
    (source,) = [of["src"] for of in page.images if of["alt"] == "2 generated images of class 3"]
    found = picture(source)
    assert found.shape == (8, 17, 2)  # two images with a gap of one pixel, grey with opacity
    assert np.abs(found[:, :8, 0].astype(int) - wanted[0]).max() <= 1
    assert np.abs(found[:, 9:, 0].astype(int) - wanted[1]).max() <= 1
    assert (found[:, 8] == 0).all() and (found[:, :8, 1] == 255).all()


def test_real_images_are_of_the_class_that_they_stand_beside(full):
    from datamodules.digits import Digits

    page, train = Page(full / "report.html"), Digits().split("train")
    (source,) = [of["src"] for of in page.images if of["alt"] == "2 real training images of class 7"]
    shown = torch.from_numpy(picture(source)[:, 9:, 0].copy())
    matches = (train.images[:, 0] == shown).all((1, 2))
    assert matches.any() and set(train.labels[matches].tolist()) == {7}


def test_what_is_missing_is_named_with_the_command_that_makes_it(run):
    before = listing(run)
    page = report(run)
    for task in ("evaluate", "audit", "utility"):
        assert f"It is made by python -m diffusion {task} run={run}" in page.text
    assert "audit:" not in page.text.split("Samples")[0] and "FID" not in page.text
    assert listing(run) == before | {"report.html"}


@pytest.mark.slow
def test_a_page_is_made_anew_and_another_folder_is_not_overwritten(run, tmp_path, capfd):
    out = tmp_path / "out"
    report(run)
    write(run / "audit", audit("pass"))
    assert "audit: pass" in report(run).text
    assert "audit: pass" in report(run, f"out={out}").text
    assert "overwrite=true" in refusal(capfd, diffusion, "report", f"run={run}", f"out={out}")
    report(run, f"out={out}", "overwrite=true")
    assert listing(out) == {"report.html"}


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"n": 3}', '{"n": 3, "metrics": {"fid": 4}, "budgets": 1}'])
def test_a_damaged_result_is_named_and_the_rest_is_shown(run, text, caplog):
    fake_results(run, DIGITS)
    for damaged in ("evaluate", "utility"):
        (run / damaged / "metrics.json").write_text(text)
    page = report(run)
    for damaged in ("evaluate", "utility"):
        (line,) = [record.message for record in caplog.records if str(run / damaged) in record.message]
        assert line.startswith(f"{run / damaged / 'metrics.json'} is damaged") and "\n" not in line
        assert html.unescape(line) in page.text
    assert "The limit was 1.00%, so the audit fails." in page.text


def test_damaged_tables_of_cases_and_losses_are_named(run):
    fake_results(run, DIGITS)
    (run / "audit" / "cases.csv").write_text("id,pixel_ratio\n0,many\n")
    (run / "audit" / "pairs.png").write_bytes(b"no picture")
    (run / "metrics.csv").write_text("step,train/loss\nfirst,0.1\n")
    page = report(run)
    assert "holds a table of cases that is damaged" in page.text and "0.543 (0.523 to 0.563)" in page.text
    assert f"{run / 'metrics.csv'} is damaged" in page.text
    assert not any("nearest" in of["alt"] for of in page.images)


def test_names_are_escaped_everywhere(run):
    names = ["<script>alert(1)</script>", "a & b", 'quo"te', "$x_1$", "{{ 7 * 7 }}", *DIGITS[5:]]
    config = OmegaConf.load(run / "config.yaml")
    config.data.spec.class_names, config.experiment = names, "<i>odd</i>"
    OmegaConf.save(config, run / "config.yaml")
    fake_results(run, names)
    page = report(run)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2
    assert not any(tag == "i" for tag, _ in page.elements)
    for name in names[:5]:
        assert page.text.count(name) >= 3  # gallery, classes of the recipe, table, chart
        assert any(f"of class {name}" in of["alt"] for of in page.images)
    assert "49" not in [word for word in page.text.split() if word == "49"]


def test_figures_of_other_weights_are_marked(run):
    own = Run.open(run).fingerprint()
    assert other_weights({"generated": {"weights": own, "step": 6}}, own) is None
    assert other_weights({"generated": {"samples": "a.npz"}}, own) is None and other_weights(None, own) is None
    receipt = RECEIPT | {"generated": {"weights": "f" * 16, "step": 1234}}
    write(run / "evaluate", evaluation([]) | {"receipt": receipt})
    said = "These figures are of other weights than the samples above: those of step 1,234."
    assert report(run).text.count(said) == 1


def test_eval_columns_are_drawn(run):
    path = run / "metrics.csv"
    header, *rows = path.read_text().splitlines()
    rows = [f"{row},{0.1 / (k + 1)},{k}" for k, row in enumerate(rows)]
    path.write_text("\n".join([f"{header},eval/kid,eval/copies", *rows]) + "\n")
    labels = [of.get("aria-label", "") for tag, of in report(run).elements if tag == "svg"]
    assert any(label.startswith("eval/kid over") for label in labels)
    assert any(label.startswith("eval/copies over") for label in labels)


def test_a_run_without_a_checkpoint_or_a_loss_has_a_page(run):
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    page = report(run)
    assert "no checkpoint yet" in page.text and "No samples could be drawn" in page.text
    assert "Nothing has been logged yet" in page.text and "denoising" not in page.sections


def test_a_diverged_run_has_a_page(run):
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    for value in content["ema"].values():
        value.fill_(torch.nan)
    torch.save(content, path)
    page = report(run)
    assert "No samples could be drawn" in page.text and "not finite" in page.text
    assert "training" in page.sections


def test_without_classes_there_is_one_gallery_and_without_data_no_real_images(tmp_path, caplog):
    run = npz_run(tmp_path, (8, 8, 1))
    page = report(run)
    alts = [of["alt"] for of in page.images]
    assert "16 generated images" in alts and "16 real training images" in alts
    (tmp_path / "data.npz").unlink()
    page = report(run)
    assert "16 real training images" not in [of["alt"] for of in page.images]
    assert "The real images are left out" in page.text and "data.npz" in page.text
    assert any("the real images are left out" in record.message for record in caplog.records)


def test_guidance_needs_classes(tmp_path, capfd):
    run = npz_run(tmp_path, (8, 8, 1))
    assert "without labels" in refusal(capfd, diffusion, "report", f"run={run}", "guidance=2.0")


def test_volumes_are_shown_by_their_middle_slice(tmp_path):
    page = report(npz_run(tmp_path, (6, 8, 10), "network.attention_size=0"))
    assert "the middle slice is shown" in page.text
    frame = picture(page.frames()["means"][-1])
    assert frame.shape == (4 * 9 - 1, 4 * 11 - 1, 2)


@pytest.mark.slow
def test_an_autoencoder_shows_reconstructions_and_a_latent_run_both(tmp_path):
    autoencoder = run_training(tmp_path, *STEPS, base=AUTOENCODER)
    page = report(autoencoder)
    assert page.sections == ["samples", "recipe", "training", "reconstruction", "receipts"]
    assert "makes no images from noise" in page.text and "python -m diffusion evaluate" not in page.text
    assert any("what the autoencoder gives back" in of["alt"] for of in page.images)
    assert f"It is made by python -m diffusion reconstruct run={autoencoder}" in page.text
    diffusion("reconstruct", f"run={autoencoder}", "n=20", "device=cpu", "classifier=false")
    page = report(autoencoder)
    assert "PSNR in dB" in page.text and "compression" in page.text
    assert any("what the codec gives back" in of["alt"] for of in page.images)
    latent = run_training(tmp_path, *STEPS, "experiment=digits_latent", f"codec.run={autoencoder}")
    page = report(latent)
    assert {"denoising", "metrics", "reconstruction"} <= set(page.sections) and "in latents" in page.text
    moved = autoencoder.rename(tmp_path / "moved")
    assert "No samples could be drawn: codec.run=" in report(latent).text
    assert "denoising" in report(latent, f"codec.run={moved}").sections


def test_mistakes_are_one_line(run, tmp_path, capfd):
    assert "at least 1" in refusal(capfd, diffusion, "report", f"run={run}", "n=0")
    assert "checkpoint=odd" in refusal(capfd, diffusion, "report", f"run={run}", "checkpoint=odd")
    assert "does not exist" in refusal(capfd, diffusion, "report", f"run={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("value", "like", "text"),
    [
        (0.5, None, "0.500"),
        (14.26, None, "14.3"),
        (2558.0, None, "2560"),
        (0.0, None, "0"),
        (-0.0123456, None, "\N{MINUS SIGN}0.0123"),
        (1.23e-9, None, "1.23e\N{MINUS SIGN}09"),
        (0.5, 14.26, "0.5"),
        (None, None, "\N{EN DASH}"),
    ],
)
def test_numbers_have_three_digits(value, like, text):
    assert number(value, like) == text


def test_what_is_left_out_for_the_same_reason_stands_together():
    found = {"left_out": {"a: fid": "too few", "ms_ssim": "too small", "b: fid": "too few"}}
    assert left_out(found) == [("a: fid, b: fid", "too few"), ("ms_ssim", "too small")]


def test_a_gauge_holds_negative_figures():
    metrics = {"kid": {"test": figure(-0.02, 0.01) | {"floor": figure(0.0, 0.01)}, "train": figure(0.04, 0.01)}}
    least, most = ends_of(metrics, "kid")
    assert (least, most) == pytest.approx((-0.03, 0.05))
    drawn = gauge(metrics["kid"]["test"], metrics["kid"]["test"]["floor"], (-0.03, 0.05))
    places = [float(x) for x in re.findall(r'c?x[12]?="([-0-9.]+)"', drawn)]
    assert min(places) == 4.0 and max(places) <= 116.0
    assert f"M{4 + 112 * 3 / 8} 2V17" in drawn  # the stroke at 0


def test_an_interval_has_the_decimals_of_its_value():
    assert with_interval({"value": 0.5432, "low": 0.5, "high": 0.5861}) == "0.543 (0.500 to 0.586)"
    # A value next to nothing would have its ends to a hundred thousandth.
    assert with_interval({"value": 0.0001, "low": -0.02, "high": 0.02}) == "0.0001 (\N{MINUS SIGN}0.0200 to 0.0200)"
    assert with_interval({"value": None, "low": None, "high": None}) == "\N{EN DASH}"


@pytest.mark.parametrize("steps", [1, 2, 12, 50, 1000])
@pytest.mark.parametrize("values", [16 * 64, 16 * 3 * 28**2, 16 * 3 * 256**2])
def test_the_frames_end_at_the_last_step_and_fit(steps, values):
    chosen = frames_of(steps, values)
    assert chosen == sorted(set(chosen)) and chosen[-1] == steps - 1
    assert (chosen[0] == 0) and (len(chosen) == steps or len(chosen) >= 12)
    factor = reduction(2 * len(chosen) * values, ANIMATION)
    assert 2 * len(chosen) * values / factor**2 <= ANIMATION


def test_images_that_are_too_large_are_averaged():
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert reduced(images, 2).tolist() == [[[[2, 4], [10, 12]]]]  # 2.5 and 10.5 go to the even neighbour
    assert torch.equal(reduced(images, 1), images)


def test_a_picture_too_large_for_the_page_is_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    found = from_file(tmp_path / "noise.png", "noise")
    assert len(found.source) <= MOST_BYTES and (found.width, found.height) == (800, 800)
    assert from_file(tmp_path / "absent.png", "nothing") is None


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """<!DOCTYPE html><body><iframe width="390" height="800"></iframe><script>
const page = document.querySelector("iframe");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
page.onload = async () => {
  const inside = page.contentDocument, view = page.contentWindow;
  const box = inside.getElementById("animation"), image = box.querySelector("img");
  const [button, slider] = [box.querySelector("button"), box.querySelector("input")];
  const found = { ready: inside.documentElement.dataset.ready, width: view.innerWidth };
  found.wide = inside.documentElement.scrollWidth;
  found.first = { frame: box.dataset.frame, source: image.src.length, shown: !button.closest("[hidden]") };
  slider.value = 0;
  slider.dispatchEvent(new view.Event("input"));
  found.start = { frame: box.dataset.frame, text: slider.getAttribute("aria-valuetext"), source: image.src };
  button.click();
  found.playing = button.textContent;
  const seen = new Set();
  for (let i = 0; i < 400; i++) { seen.add(box.dataset.frame); await wait(20); }
  found.seen = [...seen];
  found.end = { text: button.textContent, changed: image.src !== found.start.source, loaded: image.naturalWidth };
  found.tables = [...inside.querySelectorAll(".scroll")].every((table) => table.clientWidth <= view.innerWidth);
  delete found.start.source;
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(found);
};
page.srcdoc = PAGE;
</script></body>"""


def browse(page: Path, profile: Path, *words: str) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the console said."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom", *words, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_opens_the_page_and_plays_the_trajectory(full, tmp_path):
    document, said = browse(full / "report.html", tmp_path / "profile")
    assert 'data-ready="true"' in document and said == []
    text = json.dumps((full / "report.html").read_text()).replace("</", "<\\/").replace("<!--", "<\\!--")
    (tmp_path / "probe.html").write_text(PROBE.replace("PAGE", text))
    document, said = browse(tmp_path / "probe.html", tmp_path / "profile", "--force-prefers-reduced-motion")
    assert said == []
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", document, re.DOTALL).group(1)))
    last = str(len(Page(full / "report.html").frames()["names"]) - 1)
    assert found["ready"] == "true" and found["width"] == 390
    assert found["wide"] <= 390 and found["tables"]
    assert found["first"]["frame"] == last and found["first"]["shown"]
    assert found["start"]["frame"] == "0" and found["start"]["text"].startswith("step 1 of")
    assert found["playing"] == "Pause" and found["seen"][-1] == last
    assert found["end"]["text"] == "Play" and found["end"]["changed"] and found["end"]["loaded"] > 0
