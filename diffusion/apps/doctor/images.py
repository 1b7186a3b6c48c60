"""What the doctor says of images: classes, values, filled corners, duplicates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import DataSpec
from diffusion.apps.doctor.files import named
from diffusion.apps.doctor.findings import Case, Report
from diffusion.metrics.corners import filled
from diffusion.metrics.duplicates import Pairs, exact_pairs, near_pairs
from diffusion.metrics.values import values_of
from diffusion.tasks.look import SPLITS, Looked

FEW = 10
"""Training images of a class below which there is a warning."""
IMBALANCE = 10
"""How many times more images the most frequent class may have than the rarest."""
LISTED = 12
"""Classes up to which the table names them."""
NARROW = 0.25
"""Share of the range of the type that the values should span at least."""
DARK = 1 << 14
SEVERAL = 0.01
"""Share of images from which on filled corners or near duplicates are a warning: less may be chance."""

Name = Callable[[int], tuple[str, str]]
"""Place among the images that were looked at -> split and name."""


def names_of(looked: Looked, names: dict[str, list[str]] | None) -> Name:
    """A file's name, or split and row."""

    def name(place: int) -> tuple[str, str]:
        split, row = SPLITS[int(looked.part[place])], int(looked.row[place])
        return split, names[split][row] if names else f"{split} {row}"

    return name


def class_counts(spec: DataSpec, labels: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """Class -> split -> how many images; an image of several classes counts for each."""
    counted = {
        name: value.sum(0) if value.ndim == 2 else value.bincount(minlength=spec.classes or 0)
        for name, value in labels.items()
    }
    return {label: {name: int(n[k]) for name, n in counted.items()} for k, label in enumerate(spec.names)}


def about_classes(spec: DataSpec, sizes: dict[str, int], counts: dict[str, dict[str, int]], report: Report) -> None:
    shape = " x ".join(map(str, spec.shape))
    sizes_said = ", ".join(f"{name} {n}" for name, n in sizes.items())
    report.rows["images"] = f"{sizes_said}; {shape} (channels first)"
    report.metrics |= {"images": sizes, "shape": list(spec.shape), "classes": counts}
    if spec.classes is None:
        report.rows["classes"] = "no labels: the model makes images of one kind"
        return
    train = {label: n["train"] for label, n in counts.items()}
    lines = [f"{label}  {' / '.join(str(n[split]) for split in SPLITS)}" for label, n in counts.items()]
    if len(lines) > LISTED:
        lines = [f"{min(train.values())} to {max(train.values())} training images each"]
    report.rows["classes"] = "\n".join([f"{spec.classes} ({' / '.join(SPLITS)})", *lines])
    few = [label for label, n in train.items() if n < FEW]
    if few:
        text = f"there are fewer than {FEW} training images of {named(few)}"
        report.find("classes", "warning", text, [Case("train", detail=f"{label}: {train[label]}") for label in few])
    for split in ("val", "test"):
        missing = [label for label, n in counts.items() if n[split] == 0]
        if missing:
            report.find("classes", "warning", f"{split} has no image of {named(missing)}")
    enough = [n for n in train.values() if n]
    if not spec.multi_label and max(enough) > IMBALANCE * min(enough):
        most, least = max(train, key=train.get), min(train, key=train.get)
        text = f"{most} has {max(enough)} training images, {least} {min(enough)}: the model will see little of it"
        report.find("classes", "warning", text)


def about_values(looked: Looked, name: Name, report: Report) -> None:
    found, top = values_of(looked.counts), len(looked.counts) - 1
    report.rows["values"] = (
        f"{found.low} to {found.high} of 0 to {top}; mean {found.mean:.1f}, standard deviation {found.std:.1f}; "
        f"{percent(found.at_black)} are 0, {percent(found.at_white)} are {top}"
    )
    report.metrics["values"] = {**found._asdict(), "levels": top + 1, "of_images": looked.counted}
    if found.used == 2:
        report.find("values", "note", f"the images hold two values only, {found.low} and {found.high}")
    elif top > 255 and found.high < DARK:
        limit = (1 << found.high.bit_length()) - 1
        text = f"the 16-bit images use the values up to {found.high} of {top} only, so they are dark"
        report.find("values", "warning", f"{text}: where the files are pictures, set dataset.intensity=[0,{limit}]")
    elif found.span[1] - found.span[0] < NARROW * top:
        text = f"nearly all values lie between {found.span[0]} and {found.span[1]} of 0 to {top}: little contrast"
        report.find("values", "warning", text)
    places = looked.constant.nonzero().flatten().tolist()
    if places:
        cases = [Case(*name(i), detail=f"every value is {int(looked.low[i])}") for i in places]
        text = f"{len(places)} images have one value everywhere: {named(case.file for case in cases)}"
        report.find("values", "warning", text, cases, shown=None)
    report.metrics["values"]["constant_images"] = len(places)


def about_corners(looked: Looked, name: Name, report: Report) -> None:
    varied = (~looked.constant).nonzero().flatten()
    said, report.metrics["corners"] = [], {}
    if len(varied) == 0:
        report.left_out["corners"] = "all images are constant"
        return
    for color, found in filled(type(looked.corners)(*(each[varied] for each in looked.corners))).items():
        share = float(found.images.mean())
        report.metrics["corners"][color] = {"share": share, "ground": found.ground}
        if share == 0:
            continue
        said.append(f"{percent(share)} have a {color} corner" + (", the ground of such images" if found.ground else ""))
        if found.ground:
            continue
        cases = [Case(*name(i), detail=f"{color} corner") for i in varied[torch.from_numpy(found.images)].tolist()]
        severity = "warning" if share >= SEVERAL else "note"
        text = f"{percent(share)} of the images have corners or borders that are {color} throughout, the others not"
        report.find(
            "corners", severity, f"{text}: the model will draw them; crop the images, or leave these out", cases
        )
    report.rows["corners"] = "; ".join(said) or "none is black or white throughout"


def about_duplicates(
    looked: Looked, name: Name, labels: Callable[[int], str], report: Report, on_done: Callable[[float], None]
) -> dict[str, Pairs]:
    """Exact and near duplicates; the pairs of each kind, those across splits first."""
    varied = (~looked.constant).nonzero().flatten()
    exact = exact_pairs([looked.digests[i] for i in varied.tolist()])
    same = {*zip(exact.first.tolist(), exact.second.tolist(), strict=True)}
    near = near_pairs(looked.hashes[varied], looked.thumbs[varied], looked.part[varied], len(SPLITS), on_done)
    again = [pair in same or looked.digests[int(varied[pair[0]])] == looked.digests[int(varied[pair[1]])]
             for pair in zip(near.first.tolist(), near.second.tolist(), strict=True)]  # fmt: skip
    near = near.take((~torch.tensor(again, dtype=torch.bool)).nonzero().flatten())
    found = {}
    for kind, pairs in {"exact duplicates": exact, "near duplicates": near}.items():
        pairs = Pairs(varied[pairs.first], varied[pairs.second], pairs.alike)
        across = looked.part[pairs.first] != looked.part[pairs.second]
        _say(kind, pairs, across, looked, name, labels, report)
        found[kind] = pairs.take((~across).argsort(stable=True))
    return found


def _say(
    kind: str, pairs: Pairs, across: Tensor, looked: Looked, name: Name, labels: Callable[[int], str], report: Report
) -> None:
    exact = kind.startswith("exact")

    def cases(which: Tensor) -> list[Case]:
        found = []
        for i in which.nonzero().flatten().tolist():
            # The side that is tested first, for it is what loses its worth.
            a, b = int(pairs.second[i]), int(pairs.first[i])
            alike = [] if exact else [f"correlation {float(pairs.alike[i]):.4f}"]
            other = [] if labels(a) == labels(b) else [f"labelled {labels(a)} and {labels(b)}"]
            found.append(Case(*name(a), *name(b), detail=", ".join(alike + other)))
        return found

    twice = {
        split: np.unique(np.concatenate([_on_side(pairs, across, looked, k, other) for other in range(k)]))
        for k, split in enumerate(SPLITS)
        if k > 0
    }
    seen = {split: int((looked.part == k).sum()) for k, split in enumerate(SPLITS)}
    in_train = {split: len(_on_side(pairs, across, looked, k, 0)) for k, split in enumerate(SPLITS) if k > 0}
    within = int((~across).sum())
    report.rows[kind] = f"{within} pairs within splits, {int(across.sum())} across" + (
        f"; {in_train['val']} val and {in_train['test']} test images are {'' if exact else 'nearly '}in train"
        if across.any()
        else ""
    )
    report.metrics[kind.replace(" ", "_")] = {
        "within": within,
        "across": int(across.sum()),
        "share_in_train": {split: in_train[split] / max(1, seen[split]) for split in in_train},
    }
    if across.any():
        said = ", ".join(
            f"{len(which)} of {seen[split]} {split} images ({percent(len(which) / seen[split])})"
            for split, which in twice.items()
            if len(which)
        )
        many = any(len(which) >= SEVERAL * seen[split] for split, which in twice.items() if seen[split])
        severity = ("error" if many else "warning") if exact else ("warning" if many else "note")
        is_there = "are in another split too" if exact else "are nearly an image of another split"
        text = f"{said} {is_there}: what is measured there is too good"
        if exact:
            files = cases(across)
            text = f"{text} ({named(f'{case.file} = {case.other}' for case in files)})"
        report.find(kind, severity, text, cases(across))
    if within:
        count = len(torch.cat([pairs.first[~across], pairs.second[~across]]).unique())
        severity = "warning" if exact or count >= SEVERAL * len(looked) else "note"
        text = f"{count} of {len(looked)} images are there {'twice' if exact else 'nearly twice'} within their split"
        report.find(kind, severity, text, cases(~across))


def _on_side(pairs: Pairs, across: Tensor, looked: Looked, side: int, other: int) -> np.ndarray:
    """The images of split `side` that have a pair in split `other`."""
    found = []
    for a, b in ((pairs.first, pairs.second), (pairs.second, pairs.first)):
        found.append(a[across & (looked.part[a] == side) & (looked.part[b] == other)])
    return torch.cat(found).unique().numpy()


def percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 or share == 0 else "less than 0.1%"


def about_sample(looked: Looked, report: Report) -> None:
    """That not all images were looked at, if so."""
    total = sum(looked.total.values())
    if len(looked) < total:
        text = f"{len(looked)} of {total} images were looked at, drawn at random: values, corners and duplicates are of"
        report.find("images", "note", f"{text} these; n= and looking= allow more")
    report.metrics["looked_at"] = len(looked)


def labels_of(looked: Looked, labels: dict[str, Tensor], spec: DataSpec) -> Callable[[int], str]:
    """The class of an image that was looked at, by name."""

    def label(place: int) -> str:
        split = SPLITS[int(looked.part[place])]
        if split not in labels:
            return ""
        value = labels[split][int(looked.row[place])]
        return spec.names[int(value)] if value.ndim == 0 else " ".join(spec.names[k] for k in value.nonzero().flatten())

    return label
