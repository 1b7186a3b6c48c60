"""The view of a W&B project that `dashboard` writes."""

import json
import re
from pathlib import Path

import pytest

from diffusion.apps import tasks
from tests.commands import diffusion, refusal

STEP = "trainer/global_step"


@pytest.fixture
def sections(tmp_path) -> dict[str, list[dict]]:
    """The panels of each section."""
    tasks.main(["dashboard", f"out={tmp_path / 'out'}"])
    view = json.loads((tmp_path / "out" / "dashboard.json").read_text())["section"]
    assert view["settings"]["xAxis"] == STEP
    (runs,) = view["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert runs["runFeed"]["columnPinned"]["summary:val/best_loss"]
    return {section["name"]: section["panels"] for section in view["panelBankConfig"]["sections"]}


def test_the_sections_are_the_prefixes_of_what_is_logged(sections):
    assert list(sections) == ["train", "val", "loss_by_noise", "samples", "eval", "system"]
    for name in ("train", "val", "samples"):
        shown = [
            key
            for panel in sections[name]
            for key in panel["config"].get("metrics", []) + panel["config"].get("mediaKeys", [])
        ]
        assert shown and all(key.startswith(f"{name}/") for key in shown), name


def test_curves_are_drawn_over_the_optimizer_step(sections):
    machine = [panel for panel in sections["system"] if "system/gpu.0.gpu" in panel["config"]["metrics"]]
    assert [panel["config"]["xAxis"] for panel in machine] == ["_absolute_runtime"]  # W&B's own, over time
    for name in ("train", "val", "loss_by_noise", "eval"):
        curves = [panel["config"] for panel in sections[name] if "xAxis" in panel["config"]]
        assert curves and {config["xAxis"] for config in curves} == {STEP}


def test_a_panel_finds_the_losses_of_all_noise_levels(sections):
    patterns = [panel["config"]["metricRegex"] for panel in sections["loss_by_noise"]]
    for name in ("loss_by_noise/log_snr_-2_to_2", "accuracy_by_noise/log_snr_above_6"):
        assert sum(re.fullmatch(pattern, name) is not None for pattern in patterns) == 1


def test_a_view_is_saved_in_the_project(monkeypatch):
    saved = []

    def upsert(view: object) -> dict:
        saved.append(view)
        return {"upsertView": {"view": {"id": "1", "name": view.name}}}

    monkeypatch.setattr("wandb_workspaces.workspaces.internal.upsert_view2", upsert)
    monkeypatch.setattr("wandb_workspaces.workspaces.interface.get_app_url", lambda api: "https://wandb.test")
    monkeypatch.setattr("wandb.Api", lambda: None)
    tasks.main(["dashboard", "entity=team", "project=cells"])
    (view,) = saved
    assert (view.entity, view.project, view.display_name) == ("team", "cells", "med-diffusion")
    assert len(view.spec.section.panel_bank_config.sections) == 6


def test_dashboard_refuses_in_one_line(capfd, tmp_path, monkeypatch):
    for name, value in {"WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert "`wandb login` to log in; log in first, or give out=DIR" in refusal(capfd, diffusion, "dashboard")
    assert "did you mean project" in refusal(capfd, diffusion, "dashboard", "projekt=x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("")
    assert "holds results already" in refusal(capfd, diffusion, "dashboard", f"out={tmp_path / 'out'}")
    monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    line = refusal(capfd, diffusion, "dashboard", f"out={tmp_path / 'other'}")
    assert 'pip install -e ".[dashboard]"' in line and not Path(tmp_path / "other").exists()
