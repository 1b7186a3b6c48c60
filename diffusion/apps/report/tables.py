"""Rows of the page's tables, verdicts and sentences, from what evaluate, audit, utility and reconstruct have found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.apps.report.charts import ends_of, gauge
from diffusion.apps.report.results import NONE, Figure, figures_of, is_figure, number, percent, with_interval

METRICS = {
    "fid": ("FID", "lower"),
    "kid": ("KID", "lower"),
    "precision": ("precision", "higher"),
    "recall": ("recall", "higher"),
    "density": ("density", "higher"),
    "coverage": ("coverage", "higher"),
    "sliced_wasserstein": ("sliced Wasserstein", "lower"),
    "inception_score": ("inception score", "higher"),
    "label_accuracy": ("label accuracy", "higher"),
    "grade_error": ("error in grades", "lower"),
    "auroc": ("AUROC", "higher"),
    "ms_ssim": ("MS-SSIM within classes", "near that of real images"),
}
"""Their names, and which values are better."""
OF = {"test": "test", "train": "training", "generated": "generated"}


@dataclass(frozen=True)
class Badge:
    """One verdict, in words; its tone (good, bad, open) is a colour that only repeats them."""

    title: str
    text: str
    tone: str = "open"


def metric_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure; the first row of a metric says how many rows it spans."""
    rows = []
    for name, reference, figure in figures_of(metrics):
        first = not rows or rows[-1]["name"] != name
        title, better = METRICS.get(name, (name.replace("_", " "), ""))
        floor = figure.get("floor")
        own = "generated" in metrics[name]
        rows.append(
            {
                "name": name,
                "title": title,
                "better": better,
                "span": sum(is_figure(each) for each in metrics[name].values()) if first else 0,
                "reference": OF.get(reference, reference),
                "value": with_interval(figure),
                "floor": NONE if floor is None else with_interval(floor),
                "gauge": gauge(figure, floor, ends_of(metrics, name)),
                "n": f"{figure.get('n', NONE):,}" if own or "m" not in figure else f"{figure['n']:,} / {figure['m']:,}",
            }
        )
    return rows


def class_table(classes: Mapping[str, Any]) -> tuple[list[str], list[list[dict[str, str]]]]:
    """Column titles, and for each class a row of figures against the test images with their floors."""
    names = list(dict.fromkeys(name for of in classes.values() for name in of["metrics"]))
    rows = []
    for label, of in classes.items():
        figures = [of["metrics"].get(name, {}).get("test") for name in names]
        cells = [{"value": with_interval(each), "floor": with_interval((each or {}).get("floor"))} for each in figures]
        rows.append([*({"value": text, "floor": ""} for text in (label, f"{of['n']:,}")), *cells])
    return ["class", "n", *(METRICS.get(name, (name.replace("_", " "),))[0] for name in names)], rows


def left_out(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a task has left out, (what, why); those left out for the same reason together."""
    reasons: dict[str, list[str]] = {}
    for name, reason in (found.get("left_out") or {}).items():
        reasons.setdefault(str(reason), []).append(name)
    return [(", ".join(names), reason) for reason, names in reasons.items()]


def quality_badge(metrics: Mapping[str, Any]) -> Badge | None:
    """FID of the test images, beside what real images score in place of generated ones."""
    figure = metrics.get("fid", {}).get("test")
    if not is_figure(figure):
        return None
    floor = figure.get("floor")
    # Of another number of images its bias is another.
    if not is_figure(floor) or floor["n"] != figure["n"]:
        return Badge("FID", with_interval(figure))
    reached = figure["low"] <= floor["high"]
    text = f"{number(figure['value'])}, {'not above' if reached else 'above'} the floor of {number(floor['value'])}"
    return Badge("FID", text, "good" if reached else "open")


def audit_badge(found: Mapping[str, Any]) -> Badge:
    """The verdict, where a limit was set, and the share of images that look like copies."""
    verdict, share = found.get("verdict"), percent(found["copies"])
    tone = {"pass": "good", "fail": "bad"}.get(verdict, "open")
    return Badge("audit", f"{verdict}, {share} flagged" if verdict else f"{share} flagged, no limit was set", tone)


def audit_sentence(found: Mapping[str, Any]) -> str:
    """What the audit found, in full sentences."""
    said = f"Of {found['n']:,} generated images {percent(found['copies'])} are flagged as copies of training images"
    held_out = found.get("held_out_flagged")
    if is_figure(held_out):
        said += f"; of real images that were held out, which cannot be copies, {percent(held_out)}"
    limit, verdict = found.get("max_copies"), found.get("verdict")
    if verdict is None:
        return f"{said}. No limit was set, so there is no verdict."
    return f"{said}. The limit was {number(100 * limit)}%, so the audit {'passes' if verdict == 'pass' else 'fails'}."


def audit_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("generated images flagged", percent(found["copies"])),
        ("held-out real images flagged", percent(found.get("held_out_flagged"))),
        ("lightly changed training images found", percent(found.get("planted_flagged"))),
        ("membership AUROC (0.5: nothing is given away)", with_interval(found.get("membership"))),
    ]
    for kind in ("pixel", "feature"):
        if found.get(kind):
            values = f"median {number(found[kind].get('median'))}, threshold {number(found[kind].get('threshold'))}"
            rows.append((f"{kind} distance ratio", values))
    return rows


def difference_table(budgets: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Metrics, and a row for each budget and arm: the arm less real images alone."""
    rows = []
    for budget, of in budgets.items():
        for arm, figures in of.get("differences", {}).items():
            figures = {METRICS.get(name, (name,))[0]: each for name, each in figures.items() if is_figure(each)}
            rows.append({"budget": budget, "arm": arm.replace("_", " "), "figures": figures})
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    for row in rows:
        figures = row.pop("figures")
        row["cells"] = [
            {"value": with_interval(each), "p": p_value((each or {}).get("p")), "bold": bool(each and sign(each))}
            for each in map(figures.get, names)
        ]
    return names, rows


def utility_sentences(budgets: Mapping[str, Any]) -> list[str]:
    """For which arms accuracy is higher, lower or much the same as with real images alone."""
    groups: dict[int, dict[str, list[str]]] = {1: {}, -1: {}, 0: {}}
    for budget, of in budgets.items():
        for arm, figures in of.get("differences", {}).items():
            if is_figure(figure := figures.get("accuracy")):
                groups[sign(figure)].setdefault(arm.replace("_", " "), []).append(budget)
    said = {1: "Higher", -1: "Lower", 0: "No clear difference"}
    return [
        f"{said[key]}: " + "; ".join(f"{arm} (with {', '.join(at)})" for arm, at in arms.items()) + "."
        for key, arms in groups.items()
        if arms
    ]


def sign(figure: Figure) -> int:
    """1 or -1 where the interval lies on one side of 0."""
    return (figure["low"] > 0) - (figure["high"] < 0)


def p_value(p: float | None) -> str:
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def reconstruction_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of reconstruct, of all test images."""
    names = {"psnr": "PSNR in dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "mse": "MSE", "mae": "MAE"}
    rows = [("test images", f"{found['n']:,}"), ("compression", number(found.get("compression")))]
    rows += [(names.get(name, name), with_interval(each)) for name, each in found.items() if is_figure(each)]
    for name, each in (found.get("classifier_accuracy") or {}).items():
        rows.append((f"classifier accuracy on {name}", with_interval(each)))
    if found.get("frechet_distance") is not None:
        distance = found["frechet_distance"]
        rows.append(("Fréchet distance", with_interval(distance) if isinstance(distance, dict) else number(distance)))
    return rows
