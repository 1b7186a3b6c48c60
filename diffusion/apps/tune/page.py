"""What a study has found: trials.csv, and study.html, one page that needs nothing else."""

from __future__ import annotations

import csv
import json
import shlex
import warnings
from datetime import timedelta
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from diffusion.apps import pages
from diffusion.apps.tune.search import Search
from diffusion.apps.tune.space import words_of
from diffusion.files import replace_file

NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
FIGURES = {
    "plot_optimization_history": "The values, in the order of the trials, and the best so far.",
    "plot_intermediate_values": "The metric while the trials trained; lines that end early are of pruned trials.",
    "plot_parallel_coordinate": "Each complete trial is a line through its values; drag along an axis to pick some.",
    "plot_slice": "The value over each key alone; darker points are later trials.",
    "plot_param_importances": "How much the value depends on each key; of few trials it means nothing.",
}


def save_table(search: Search) -> None:
    """One row a trial: number, state, value, its keys, seconds of training, run, error."""
    keys = list(search.space)

    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["number", "state", "value", *keys, "seconds", "run", "error"])
            for trial in search.trials:
                facts = trial.user_attrs
                value = "" if trial.value is None else trial.value
                about = [facts.get(name, "") for name in ("seconds", "run", "error")]
                rows.writerow([trial.number, NAMES[trial.state], value, *(trial.params[key] for key in keys), *about])

    replace_file(search.folder / "trials.csv", write)


def save_page(search: Search, total: int) -> None:
    """study.html: the best trial, Optuna's figures, all trials, the space, and the command that goes on with it."""
    page = page_of(search, total)
    replace_file(search.page, lambda path: path.write_text(render(page), encoding="utf-8"))


def render(page: dict[str, Any]) -> str:
    """The page as HTML; everything in it that is not of this package or of Plotly is escaped."""
    from plotly.offline import get_plotlyjs

    return pages.render(Path(__file__).with_name("page.html"), page | {"plotly": get_plotlyjs()})


def page_of(search: Search, total: int) -> dict[str, Any]:
    """Everything that the template names."""
    trials, ranked, settings = search.trials, search.ranked(), search.settings
    counts = {name: sum(trial.state == state for trial in trials) for state, name in NAMES.items()}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    others = [trial for state in list(NAMES)[1:] for trial in trials if trial.state == state]
    return {
        "title": search.folder.name,
        "subtitle": f"{len(trials)} of {total} trials: {said}" if trials else f"none of {total} trials has begun",
        "metric": settings.metric,
        "better": "lower" if settings.direction == "minimize" else "higher",
        "best": row_of(ranked[0]) if ranked else None,
        "train": shlex.join(["python", "train.py", *settings.words, *words_of(ranked[0].params)]) if ranked else "",
        "keys": list(search.space),
        "rows": [row_of(trial) for trial in [*ranked, *others]],
        "figures": figures_of(search) if ranked else [],
        "space": list(settings.space.items()),
        "command": command_of(search, total),
        "settings": [
            ("pruning", f"median, after step {settings.warmup}" if settings.pruning else "none"),
            ("seed", settings.seed),
            ("sampler", f"TPE, Optuna {version('optuna')}"),
        ],
    }


def row_of(trial: FrozenTrial) -> dict[str, Any]:
    facts = trial.user_attrs
    newest = trial.last_step
    return {
        "number": trial.number,
        "state": NAMES[trial.state],
        "value": f"{trial.value:.5g}" if trial.state == TrialState.COMPLETE else "",
        "params": [f"{value:.4g}" if isinstance(value, float) else value for value in trial.params.values()],
        "words": " ".join(words_of(trial.params)),
        "step": "" if newest is None else newest,
        "time": timedelta(seconds=round(facts["seconds"])) if "seconds" in facts else "",
        "run": facts.get("run"),
        "error": facts.get("error"),
    }


def figures_of(search: Search) -> list[dict[str, str]]:
    """Optuna's own figures; what cannot be drawn yet says why."""
    import optuna.visualization

    found = []
    for name, caption in FIGURES.items():
        draw = getattr(optuna.visualization, name)
        options = {"target_name": search.settings.metric} if "target_name" in signature(draw).parameters else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = draw(search.study, **options)
        except Exception as error:  # a figure is not worth a night's trials
            found.append({"caption": f"{caption} Not drawn: {' '.join(str(error).split())}", "html": ""})
            continue
        title = figure.layout.title.text.removesuffix(" Plot")
        figure.update_layout(title=None, width=None, template="plotly_white", margin={"t": 40, "r": 20})
        options = {"displayModeBar": False, "responsive": True}
        html = figure.to_html(full_html=False, include_plotlyjs=False, default_height="26rem", config=options)
        found.append({"title": title, "caption": caption, "html": html})
    return found


def command_of(search: Search, total: int) -> str:
    """The command that goes on with the study, whatever its name and space were made of."""
    settings = search.settings
    words = [*settings.words, *(f"{key}={sweep}" for key, sweep in settings.space.items())]
    words += [f"{key}={json.dumps(settings[key])}" for key in ("pruning", "warmup")]
    words += [f"{key}={settings[key]}" for key in ("metric", "direction")]
    return shlex.join(["python", "-m", "diffusion", "tune", *words, f"trials={total}", f"study={search.folder.name}"])
