"""What `python -m diffusion utility` writes, of a file of samples and of a run; and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import recall_score, roc_auc_score

from datamodules.digits import Digits
from diffusion.apps.utility import scores, verdict
from diffusion.metrics.paired import paired_difference
from diffusion.tasks.utility import ARMS, OF_VARIANTS
from tests.commands import diffusion, refusal
from tests.training import run_training

QUICK = ["steps=2", "seeds=2", "budgets=[3,all]", "device=cpu"]
NAMES = Digits.class_names

pytestmark = pytest.mark.slow


def save(path: Path, images: torch.Tensor, labels: torch.Tensor | None) -> Path:
    arrays = {} if labels is None else {"labels": labels.numpy()}
    np.savez(path, images=images.movedim(1, -1).numpy(), **arrays)
    return path


def stand_in(path: Path, digits: tuple[int, ...] = tuple(range(10))) -> Path:
    """The training images of these digits, as if they were synthetic."""
    train = Digits().split("train")
    chosen = torch.isin(train.labels, torch.tensor(digits))
    return save(path, train.images[chosen], train.labels[chosen])


def judge(out: Path, *words: str) -> dict:
    """metrics.json"""
    diffusion("utility", f"out={out}", *words)
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("utility")
    words = [f"samples={stand_in(folder / 'samples.npz')}", "dataset=digits", *QUICK]
    return judge(folder / "out", *words), folder


def without_receipt(found: dict) -> dict:
    return {key: value for key, value in found.items() if key != "receipt"}


def test_the_figures_are_whole(done):
    found, _ = done
    assert {key: found[key] for key in ("n", "seeds", "steps")} == {"n": 808, "seeds": 2, "steps": 2}
    assert found["arms"] == list(ARMS) and list(found["budgets"]) == ["3", "all"]
    assert "808 real training images" in found["note"]
    assert found["receipt"]["generated"]["images"] == 808 and found["receipt"]["seconds"]["total"] > 0
    for budget, real in {"3": 30, "all": 808}.items():
        section = found["budgets"][budget]
        assert section["images"] == {"real": real, "synthetic": 808}
        assert list(section["arms"]) == list(ARMS) and list(section["differences"]) == list(ARMS[1:])
        for figures in section["arms"].values():
            assert list(figures["recall"]) == list(NAMES)
            for each in (figures["accuracy"], figures["auroc"], *figures["recall"].values()):
                assert 0 <= each["low"] <= each["value"] <= each["high"] <= 1
            assert figures["accuracy"]["n"] == 899 and sum(each["n"] for each in figures["recall"].values()) == 899
        for arm, figures in section["differences"].items():
            for key, each in figures.items():
                before, after = (section["arms"][name][key]["value"] for name in ("real", arm))
                assert each["value"] == pytest.approx(after - before) and 0 <= each["p"] <= 1
                assert each["low"] <= each["value"] <= each["high"]
    assert found["budgets"]["3"]["arms"]["synthetic"] == found["budgets"]["all"]["arms"]["synthetic"]
    assert found["budgets"]["3"]["arms"]["real"] != found["budgets"]["all"]["arms"]["real"]


def test_the_cases_add_up_to_the_figures(done):
    found, folder = done
    with (folder / "out" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == Digits().split("test").labels.tolist()
    for budget, section in found["budgets"].items():
        for arm, figures in section["arms"].items():
            shares = np.array([float(row[f"{budget} {arm}"]) for row in rows])
            assert shares.mean() == pytest.approx(figures["accuracy"]["value"], abs=1e-4)
            sevens = np.array([row["label"] == "7" for row in rows])
            assert shares[sevens].mean() == pytest.approx(figures["recall"]["7"]["value"], abs=1e-4)


def test_the_picture_is_there_and_wide_enough(done):
    with Image.open(done[1] / "out" / "utility.png") as picture:
        assert picture.size[0] >= 1000


@pytest.mark.slow
def test_figures_depend_on_data_samples_and_seed_alone(done, tmp_path):
    found, folder = done
    torch.manual_seed(3)
    before = torch.get_rng_state()
    words = [f"samples={folder / 'samples.npz'}", "dataset=digits", *QUICK]
    assert without_receipt(judge(tmp_path / "again", *words)) == without_receipt(found)
    assert torch.equal(torch.get_rng_state(), before)
    assert judge(tmp_path / "other", *words, "seed=1")["budgets"] != found["budgets"]


def test_the_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 4, 80))
    arms = {arm: torch.from_numpy(rng.normal(size=(3, 80, 4)) + 2 * np.eye(4)[labels]).softmax(2) for arm in ARMS}
    found = scores(arms, labels, list("abcd"))
    for arm, given in arms.items():
        recalls = np.mean([recall_score(labels, each.argmax(1), average=None) for each in given], axis=0)
        areas = [roc_auc_score(labels, each, multi_class="ovr") for each in given]
        figures = found["arms"][arm]
        assert [figures["recall"][name]["value"] for name in "abcd"] == pytest.approx(recalls)
        assert figures["auroc"]["value"] == pytest.approx(np.mean(areas))
        assert figures["accuracy"]["value"] == pytest.approx((given.argmax(2) == labels).double().mean().item())
    right = {arm: (given.argmax(2) == labels).double() for arm, given in arms.items()}
    difference, p = paired_difference(right["both"], right["real"])
    assert found["differences"]["both"]["accuracy"] == {**difference._asdict(), "n": 80, "p": p}


def test_a_class_without_test_images_has_no_recall():
    labels = torch.tensor([0, 0, 2, 2])
    arms = {arm: torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(2) for arm in ARMS}
    assert list(scores(arms, labels, "abc")["arms"]["real"]["recall"]) == ["a", "c"]
    assert "auroc" not in scores(arms, torch.zeros(4, dtype=torch.long), "abc")["arms"]["real"]


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.01, 0.1, 0.01, "helps"),
        (-0.1, -0.01, 0.01, "hurts"),
        (-0.1, 0.1, 0.9, "no sure difference"),
        (0.01, 0.1, 0.04, "no sure difference"),  # the best of three by chance
    ],
)
def test_the_sentence_says_on_which_side_of_0_it_is_for_sure(low, high, p, said):
    arms = {"real": {"accuracy": {"value": 0.8}}, "both": {"accuracy": {"value": 0.85}}}
    change = {"value": (low + high) / 2, "low": low, "high": high, "p": p}
    line = verdict("10", {"best": "both", "tried": 3, "arms": arms, "differences": {"both": {"accuracy": change}}})
    assert line.startswith("10 labels a class") and said in line and "both 0.850, real 0.800" in line


def test_what_there_is_too_little_of_is_said(tmp_path, caplog):
    samples = stand_in(tmp_path / "samples.npz", digits=(0, 1, 2, 4, 5, 6, 7, 8))
    words = [f"samples={samples}", "dataset=digits", "steps=1", "seeds=1", "budgets=[81]", "device=cpu", "n=100"]
    with caplog.at_level("INFO"):
        found = judge(tmp_path / "out", *words)
    assert found["n"] == 100
    assert "no synthetic image of 3, 9" in caplog.text
    assert "may have learnt from all of them" in caplog.text
    assert found["left_out"]["synthetic"] == "no synthetic image of 3, 9"
    assert "one seed" in found["left_out"]["seeds"]
    assert found["left_out"]["81: 8"].startswith("78 training images")
    assert "81: 1" not in found["left_out"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("budgets=[0]", "give whole numbers above 0, or all"),
        ("budgets=[10,-5]", "give whole numbers above 0, or all"),
        ("budgets=[some]", "give whole numbers above 0, or all"),
        ("budgets=[2.5]", "give whole numbers above 0, or all"),
        ("budgets=true", "give whole numbers above 0, or all"),
        ("budgets=[]", "give at least one"),
        ("seeds=0", "seeds=0: ask for at least 1"),
        ("seeds=few", "give a whole number"),
        ("steps=0", "steps=0: ask for at least 1"),
        ("steps=1.5", "steps=1.5: give a whole number"),
        ("n=0", "n=0: ask for at least 1"),
    ],
)
def test_one_bad_word_is_refused(done, capfd, tmp_path, word, said):
    samples = f"samples={done[1] / 'samples.npz'}"
    assert said in refusal(capfd, diffusion, "utility", samples, "dataset=digits", f"out={tmp_path}/out", word)
    assert not (tmp_path / "out").exists()


def data(path: Path, labels: np.ndarray | None) -> str:
    """A file of 12 noise images in each split, with these labels."""
    rng = np.random.default_rng(0)
    arrays = {f"{split}_images": rng.integers(0, 256, (12, 8, 8), dtype=np.uint8) for split in ("train", "val", "test")}
    if labels is not None:
        arrays |= {f"{split}_labels": labels for split in ("train", "val", "test")}
    np.savez(path, **arrays)
    return f"dataset.path={path}"


def test_without_classes_it_is_refused(capfd, tmp_path):
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2
    bare, labelled = save(tmp_path / "bare.npz", images, None), save(tmp_path / "labelled.npz", images, labels)
    line = refusal(capfd, diffusion, "utility", f"samples={bare}", "dataset=digits", f"out={tmp_path}/a")
    assert "has no labels" in line
    words = ["utility", f"samples={labelled}", "dataset=npz"]
    none, several = (
        data(tmp_path / f"{name}.npz", given)
        for name, given in {"none": None, "several": np.tile([[1, 1, 0], [0, 1, 1]], (6, 1))}.items()
    )
    assert "has no classes" in refusal(capfd, diffusion, *words, none, f"out={tmp_path}/b")
    assert "several classes at once" in refusal(capfd, diffusion, *words, several, f"out={tmp_path}/c")


@pytest.mark.slow
def test_of_a_run(tmp_path):
    run = run_training(tmp_path, "trainer.max_steps=2")
    diffusion("utility", f"run={run}", "sampler=ddim", "n=20", *QUICK)
    found = json.loads((run / "utility" / "metrics.json").read_text())
    assert found["n"] == 20 and found["receipt"]["generated"]["sampler"]["name"] == "ddim"
    assert "learnt from all" in found["note"]
    assert (run / "utility" / "utility.png").exists() and (run / "utility" / "cases.csv").exists()


@pytest.mark.slow
def test_with_variants_of_the_same_images(tmp_path, capfd):
    run = run_training(tmp_path, "trainer.max_steps=2")
    quick = ["variants=1", "classifier=false", "real=false", "grid.steps=1", "device=cpu"]
    diffusion("augment", f"run={run}", *quick, "n=300")
    words = [f"run={run}", "n=20", *QUICK, "seeds=1", f"variants={run}/augment"]
    found = judge(tmp_path / "out", *words)
    assert found["arms"] == [*ARMS, *OF_VARIANTS] == list(found["budgets"]["3"]["arms"])
    assert found["variants"]["images"] == 300 and found["variants"]["probability"] == 0.5
    assert found["left_out"]["variants"].startswith("508 of 808")
    # Without variants the other arms are what they were.
    plain = judge(tmp_path / "plain", *words[:-1])["budgets"]["3"]["arms"]
    for arm in ARMS:
        assert plain[arm]["accuracy"] == pytest.approx(found["budgets"]["3"]["arms"][arm]["accuracy"])

    def refused(*more: str) -> str:
        line = refusal(capfd, diffusion, "utility", *words, f"out={tmp_path}/no/out", *more)
        assert not (tmp_path / "no").exists()
        return line

    assert "probability=0" in refused("probability=0.0")
    assert "no manifest.csv" in refused(f"variants={tmp_path}")
    diffusion("augment", f"run={run}", *quick, "n=4", "split=val", f"out={tmp_path}/val")
    assert "of the val split" in refused(f"variants={tmp_path}/val")
    other = (tmp_path / "val" / "metrics.json").read_text().replace('"val"', '"train"')
    (tmp_path / "val" / "metrics.json").write_text(other.replace(found["receipt"]["data"]["fingerprint"], "0" * 16))
    assert "make variants of these data" in refused(f"variants={tmp_path}/val")
    next((run / "augment" / "images").rglob("*.png")).write_bytes(b"no picture")
    assert "cannot be read as a picture" in refused()


@pytest.mark.slow
def test_a_run_without_labels_is_refused(capfd, tmp_path):
    run = run_training(tmp_path, "trainer.max_steps=2", "model.condition=[]", "guidance=none")
    assert "was trained without labels" in refusal(capfd, diffusion, "utility", f"run={run}", "device=cpu")


@pytest.mark.slow
def test_more_images_of_the_same_kind_help_where_labels_are_few(tmp_path):
    samples = stand_in(tmp_path / "samples.npz")
    words = [f"samples={samples}", "dataset=digits", "steps=60", "seeds=3", "budgets=[10]", "device=cpu"]
    section = judge(tmp_path / "out", *words)["budgets"]["10"]
    for arm in ("synthetic", "both", "synthetic_then_real"):
        assert section["differences"][arm]["accuracy"]["low"] > 0, arm
    assert "synthetic data helps" in verdict("10", section)
