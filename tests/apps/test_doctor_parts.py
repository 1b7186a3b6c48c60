import json
import math
import re

import torch

from diffusion.apps.doctor.files import PATTERN, torn_stems
from diffusion.apps.doctor.findings import Case, Report
from diffusion.apps.doctor.memory import Peak
from diffusion.apps.doctor.steps import Trial
from diffusion.apps.doctor.training import about_training
from tests.training import composed


def test_stems():
    files = [("train", "a/BloodImage_00008_1.jpg"), ("val", "b/BloodImage_00008_2.jpg"), ("test", "c/x_1.jpg")]
    assert list(torn_stems(files)) == ["BloodImage_00008"]
    assert torn_stems([("train", "image_1.png"), ("test", "image_2.png")]) == {}
    many = [(["train", "val"][i % 2], f"scan_2020_{i}.png") for i in range(30)]
    assert torn_stems(many) == {}
    for name, patient in {
        "Basophil/BloodImage_00008_1.jpg": "BloodImage_00008",
        "BloodImage_00008.jpg": "BloodImage_00008",
        "p12-3.tif": "p12",
    }.items():
        assert re.search(PATTERN, name)[1] == patient


def test_verdicts():
    report = Report()
    assert report.verdict == "ready"
    report.find("a", "note", "n")
    assert report.verdict == "ready" and report.mark("a") == "note" and report.mark("b") == "ok"
    report.find("a", "warning", "w")
    assert report.verdict == "ready, with 1 warning" and report.mark("a") == "warning"
    report.find("b", "error", "e")
    assert report.verdict == "not ready: e"


def test_names_are_printed_in_full_even_on_a_narrow_terminal(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "a/very/long/" + "x" * 200 + ".png"
    report = Report(rows={"files": name})
    report.find("files", "error", "one", [Case("train", f"{name}{i}") for i in range(30)], shown=None)
    report.print("title")
    printed = capfd.readouterr().out
    assert all(f"train: {name}{i}\n" in printed for i in range(30))
    report.find("more", "note", "two", [Case("train", f"file {i}") for i in range(30)])
    report.print("title")
    assert "and 20 more in cases.csv" in capfd.readouterr().out


def test_a_peak_is_measured():
    peak = Peak(torch.device("cpu"))
    block = torch.ones(32 << 20, dtype=torch.uint8)
    assert peak.now() - peak.before > 0.9 * len(block)


def test_a_batch_whose_loss_explodes_or_stays():
    cfg = composed(["experiment=digits_pixel"])
    memory = dict.fromkeys(("parameters", "gradients", "optimizer", "averaged", "peak", "rest"), 1)

    def said(losses):
        report = Report(metrics={"shape": [1, 8, 8]})
        about_training(Trial("UNet", 10, "cpu", 64, 0.5, 3, memory, losses, 4), cfg, 800, report)
        json.dumps(report.metrics, allow_nan=False)
        return report

    report = said([1.0, 0.5])
    assert report.verdict == "ready" and report.metrics["run"]["steps"] == 240  # two minutes of half seconds
    assert report.metrics["run"]["epochs"] == 240 * 64 / 800
    assert said([1.0, math.nan]).verdict.startswith("not ready: the loss of one batch becomes nan")
    assert said([1.0] * 5).mark("one batch") == "note" and said([1.0] * 40).mark("one batch") == "warning"
