"""What the doctor says of files: which cannot be read, which are unlike the others, whose patients are torn apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from diffusion.apps.doctor.findings import Case, Report

SMALLER = 0.1
"""Share of files that may be smaller than what is made of them."""
LARGEST_GROUP = 0.2
"""A stem that more files than this share have in common names no patient."""
NUMBERED = re.compile(r"^(.*\d)[_-]\d+$")
PATTERN = r"([^/]*?\d+)(?:[_-]\d+)?\.[^/]*$"
"""Finds in a file's name what comes before its last number: BloodImage_00008 in Basophil/BloodImage_00008_1.jpg."""


def about_files(survey: Any, unreadable: str, report: Report) -> None:
    """survey: of the data module, see datamodules/survey.py. unreadable: refuse or skip."""
    files = survey.files
    failed = [fact for fact in files if fact.error]
    report.rows["files"] = f"{len(files)} opened"
    if survey.unopened:
        report.rows["files"] += f", {survey.unopened} not"
        text = f"{survey.unopened} of {len(files) + survey.unopened} files were not opened, for lack of time or memory"
        report.find("files", "note", f"{text}; a larger reading= opens more")
    if failed:
        report.rows["files"] += f", {len(failed)} cannot be read"
        text = f"{len(failed)} of {len(files)} files cannot be read"
        cases = [Case(fact.split, fact.name, detail=fact.error) for fact in failed]
        if unreadable == "refuse":
            report.find("files", "error", f"{text}: {named(fact.name for fact in failed)}", cases, shown=None)
        else:
            report.find("files", "warning", f"{text}, and are left out", cases, shown=None)
    others = [fact for fact in files if not fact.error and fact.shape is not None and fact.kind != survey.kind]
    if others:
        report.rows["files"] += f", {len(others)} are of another kind"
        text = f"{len(others)} of {len(files)} files are unlike the others, which are {kind(*survey.kind)}"
        cases = [Case(fact.split, fact.name, detail=kind(*fact.kind)) for fact in others]
        text = f"{text}: {named(fact.name for fact in others)}; dataset.channels and dataset.bits convert"
        report.find("files", "error", text, cases, shown=None)
    empty = [fact for fact in files if not fact.error and fact.shape is None]
    if empty:
        cases = [Case(fact.split, fact.name) for fact in empty]
        report.find("files", "note", f"{len(empty)} files give no images", cases)
    for problem in survey.problems:
        report.find("files", "error", problem)
    _sizes(survey, report)
    report.metrics["files"] = {
        "opened": len(files),
        "not_opened": survey.unopened,
        "unreadable": len(failed),
        "of_another_kind": len(others),
    }


def _sizes(survey: Any, report: Report) -> None:
    known = [fact for fact in survey.files if fact.size is not None and not fact.error]
    if not known or survey.kind[1] is None:
        return
    sides = [min(fact.size) for fact in known]
    widest = [max(fact.size) for fact in known]
    side = min(survey.kind[1][1:])
    report.rows["files"] += f"; {min(sides)} to {max(widest)} pixels a side, become {side}"
    small = [fact for fact in known if min(fact.size) < side]
    if small:
        severity = "warning" if len(small) > SMALLER * len(known) else "note"
        text = f"{len(small)} of {len(known)} files are smaller than {side} pixels, and are enlarged"
        cases = [Case(fact.split, fact.name, detail="{} x {}".format(*fact.size)) for fact in small]
        report.find("files", severity, text, cases)


def about_patients(survey: Any, report: Report) -> None:
    """Those on several sides of the split; where none are known, what the names of the files suggest."""
    if survey.torn:
        # By their files: who a patient is goes nowhere.
        cases = [
            Case(split, name, files[0][1], files[0][0], detail="one patient")
            for files in survey.torn.values()
            for name, split in files[1:]
            if split != files[0][1]
        ]
        first = named(files[0][0] for files in survey.torn.values())
        text = f"{len(survey.torn)} patients on several sides of the split, those of {first}"
        report.find("patients", "error", text, cases, shown=None)
    groups = {fact.group for fact in survey.files}
    report.metrics["patients"] = {"torn": len(survey.torn)}
    if any(fact.group != fact.name for fact in survey.files):
        report.rows["patients"] = f"{len(groups) + len(survey.torn)}, of which {len(survey.torn)} are on several sides"
        return
    report.rows["patients"] = "not known: each file counts as one"
    torn = torn_stems([(fact.split, fact.name) for fact in survey.files])
    if torn:
        fitting = all(re.search(PATTERN, fact.name) for fact in survey.files)
        how = f"""'dataset.patient="{PATTERN}"'""" if fitting else "dataset.patient=PATTERN"
        cases = [Case(*files[0], *files[-1], detail=f"both begin with {stem}") for stem, files in torn.items()]
        text = f"on several sides of the split, but for a last number: {named(torn)}; if these are patients, add"
        report.find("patients", "warning", f"{text} {how}", cases)
        report.metrics["patients"]["torn_stems"] = len(torn)


def torn_stems(files: Sequence[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Of splits and names, those that differ in a last number alone and lie in several splits, by what they share.

    What is shared has to hold a number itself, and not to be common to a large part of the files.
    """
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, name in files:
        stem = PurePosixPath(name).stem
        found = NUMBERED.match(stem)
        groups[found[1] if found else stem].append((split, name))
    most = max(2, LARGEST_GROUP * len(files))
    return {
        stem: sorted(members, key=lambda member: (member[0], member[1]))
        for stem, members in groups.items()
        if len({split for split, _ in members}) > 1 and len(members) <= most and any(c.isdigit() for c in stem)
    }


def kind(bits: int | None, shape: tuple[int, ...] | None) -> str:
    """As people say it."""
    if shape is None:
        return "unknown"
    colors = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    return f"{bits} bits, {colors}, {' x '.join(map(str, shape[1:]))}"


def named(names: Iterable[str]) -> str:
    """Up to five names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
