"""The model card: what was trained on what, how, how good it is, and what it is not for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from diffusion.apps.export.places import without_places
from diffusion.apps.report import tables
from diffusion.apps.report.recipe import data_of, recipe, trained
from diffusion.apps.report.results import Part
from diffusion.apps.report.sections import read
from diffusion.provenance import code
from diffusion.runs import Run


def card(run: Run, export: Any, config: DictConfig, largest: float) -> str:
    """README.md, with the front matter of the Hugging Face hub. It names no place on this machine."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    content = run.load_checkpoint()
    public = Run(run.directory, without_places(run.config), run.checkpoint, run.ema)
    said, _ = trained(public, (content["global_step"], content["callbacks"]["Budget"]))
    data = data_of(public, None, None)
    del data["counts"]
    size = sum(value.numel() for value in content["ema"].values())
    skipped = {"limits", *data}
    weights = run.fingerprint()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        # A JSON string is one of YAML, whatever is in it.
        license=json.dumps(str(config.license), ensure_ascii=False),
        export=export,
        to=config.to,
        run=public,
        name=f"{public.config.experiment} / {public.config.run_id}",
        n=config.n,
        largest=f"{largest:.1g}",
        data=cells(data.items()),
        recipe=cells((what, value) for what, value in recipe(public, size, said, {}) if what not in skipped),
        average=public.average,
        evaluation=read(Part.of(run.directory, "evaluate", "RUN_DIR"), figures_of_evaluation, weights),
        audit=read(Part.of(run.directory, "audit", "RUN_DIR"), figures_of_audit, weights),
        version=code()["version"],
    )


def cells(rows: Any) -> list[tuple[str, str]]:
    """Rows whose texts cannot break a table of Markdown."""
    return [tuple(" ".join(str(text).split()).replace("|", "\\|") for text in row) for row in rows]


def figures_of_evaluation(part: Part) -> dict[str, Any]:
    rows = tables.metric_rows(part.found["metrics"])
    return {
        "n": part.found["n"],
        "extractor": part.found["receipt"]["extractor"]["name"],
        "rows": cells((row["title"], row["better"], row["reference"], row["value"], row["floor"]) for row in rows),
    }


def figures_of_audit(part: Part) -> dict[str, Any]:
    return {"sentence": tables.audit_sentence(part.found), "rows": cells(tables.audit_rows(part.found))}
