"""Two results of evaluate side by side, if they may be compared at all."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from diffusion.errors import UserError
from diffusion.runs import flat

log = logging.getLogger("diffusion")

MUST_AGREE = (
    "data.fingerprint",
    "extractor.name",
    "extractor.weights",
    "extractor.features",
    "extractor.resize",
    "extractor.channels",
    "extractor.volumes",
)
"""Figures of which one of these differs are measures of different things."""
SHOULD_AGREE = ("n", "code.version", "code.commit", "machine.device")
"""What may move figures a little, or, as the number of images does, by a bias."""


DOMAIN = ": the network was trained twice; copy .cache/classifier_judge_*.safetensors from one machine to the other"
BIASED = ("fid", "precision", "recall", "density", "coverage", "sliced_wasserstein")
"""Figures whose expectation depends on the number of images."""


def read_receipt(path: Path) -> dict[str, Any]:
    """What evaluate has written to a folder, or to a metrics.json. Raises UserError where it has not."""
    places = [path / "metrics.json", path / "evaluate" / "metrics.json"] if path.is_dir() else [path]
    file = next((place for place in places if place.is_file()), places[0])
    try:
        found = json.loads(file.read_text())
        if "metrics" not in found or "extractor" not in found["receipt"]:
            raise ValueError("it holds no metrics with a receipt")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file} is not what `evaluate` writes ({reason}): give its folder") from error
    return found | {"path": str(path)}


def compare(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Log a table of the differences b - a, with 95% intervals.

    Raises UserError where they compare with other images or by other features; warns where they differ in what may
    move a figure. The intervals take the results as independent: the half-widths add as squares.
    """
    facts = [{"n": each["n"], **flat(each["receipt"])} for each in (a, b)]
    for key in MUST_AGREE:
        before, after = (each.get(key) for each in facts)
        if before != after:
            hint = DOMAIN if key == "extractor.weights" and a["receipt"]["extractor"]["name"] == "domain" else ""
            raise UserError(
                f"these cannot be compared: {key} is {before} in {a['path']} and {after} in {b['path']}{hint}"
            )
    for key in SHOULD_AGREE:
        before, after = (each.get(key) for each in facts)
        if before != after:
            biased = f": {', '.join(BIASED)} depend on it" if key == "n" else ""
            log.warning("%s differs: %s and %s%s", key, before, after, biased)
    log.info("%28s  %12s  %12s  %s", "", "A", "B", "B - A")
    for label, first, second in _pairs(a["metrics"], b["metrics"]):
        log.info("%28s  %12.4g  %12.4g  %s", label, first["value"], second["value"], _difference(first, second, label))


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, dict, dict]]:
    """The figures that are in both: of comparisons by reference, else of the generated images."""
    found = []
    for name in a:
        for part in a[name]:
            if part in ("test", "train") and "generated" in a[name]:
                continue  # of real images, the same in both
            if name in b and part in b[name] and isinstance(a[name][part], dict):
                found.append((f"{name}, {part}", a[name][part], b[name][part]))
    return found


def _difference(a: dict[str, float], b: dict[str, float], label: str) -> str:
    difference = b["value"] - a["value"]
    low = difference - math.hypot(b["value"] - b["low"], a["high"] - a["value"])
    high = difference + math.hypot(b["high"] - b["value"], a["value"] - a["low"])
    return f"{difference:+.4g} ({low:+.4g} to {high:+.4g})" + _said(
        low, high, a["n"] == b["n"] or not label.startswith(BIASED)
    )


def _said(low: float, high: float, comparable: bool) -> str:
    return "  not comparable" if not comparable else "" if low <= 0 <= high else "  differ"
