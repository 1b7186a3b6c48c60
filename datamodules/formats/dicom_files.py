"""DICOM files under a folder, put together to series."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.batch import DataError
from datamodules.formats.dicom_headers import Header, check_syntax, is_dicom, read_header, require_pydicom
from datamodules.formats.dicom_space import Place, arrange, steps
from datamodules.progress import with_progress
from datamodules.table import files_under

log = logging.getLogger(__name__)

OTHER = {"SEG": "segmentations", "RTDOSE": "doses", "SM": "whole slides", "PR": "display states", "ECG": "curves"}
"""Modalities that have pixels, or look as if, but are no images to train on."""
PROJECTIONS = {"CR", "DX", "DG", "MG", "IO", "PX", "RF", "XA", "RG", "US", "IVUS", "ES", "XC", "OP", "GM", "OT", "SC"}
"""Modalities whose files are pictures by themselves, wherever they say to lie."""
STACKS = {"CT", "MR", "PT"}
"""Modalities whose slices are stacked by their numbers where they do not say where they lie."""


@dataclass(frozen=True)
class Series:
    """What one `read` takes: the slices of a series, or a single file.

    files: in no order
    name:  for people: the folder, or the first file, relative to the data
    group: the same for all series of a patient: the name of their first one, as nothing that identifies them goes on
    flat:  pictures that stand for themselves
    """

    files: tuple[Path, ...]
    name: str
    group: str
    flat: bool


def find(root: Path, modality: str | None = None, skip: bool = False) -> list[Series]:
    """All series under a folder, sorted by name. What is left out is counted in the log.

    modality: only these, by DICOM's short names: CT, MR, ...
    skip:     leave out files that are damaged or compressed in a way that nothing installed reads, and series whose
              slices do not fit together
    DataError: there are no images; without `skip`, for what it would leave out.
    """
    require_pydicom()
    headers = _decodable(_headers(root, modality, skip), root, skip)
    burned = sum(header.burned_in for header in headers)
    if burned:
        log.warning("%s: %d files say that text is burned into their pixels: see that it names nobody", root, burned)
    return _grouped(headers, root, skip)


def _decodable(headers: Sequence[Header], root: Path, skip: bool) -> list[Header]:
    """Those whose transfer syntax can be read with what is installed."""
    found = list(headers)
    for syntax in dict.fromkeys(header.syntax for header in headers):
        same = [header for header in headers if header.syntax == syntax]
        try:
            check_syntax(syntax, same[0].path, len(same) - 1)
        except DataError as error:
            if not skip or len(same) == len(found):
                raise
            log.warning("%s: left out, %s", root, error)
            found = [header for header in found if header.syntax != syntax]
    return found


def _headers(root: Path, modality: str | None, skip: bool) -> list[Header]:
    found: list[Header] = []
    left: Counter[str] = Counter()
    odd = ""
    for path in with_progress("reading headers", files_under(root, ())):
        if path.name.upper().startswith("DICOMDIR"):
            continue
        try:
            if not is_dicom(path):
                left["are no DICOM files"] += 1
                odd = odd or _name(path, root)
                continue
            header = read_header(path)
        except DataError:
            if not skip:
                raise
            left["are damaged or without pixels"] += 1
            continue
        if header is None:
            left["hold no image"] += 1
        elif modality is not None and header.modality != modality:
            left[f"are not of modality {modality}"] += 1
        elif header.modality in OTHER:
            left[f"are {OTHER[header.modality]}"] += 1
        elif header.localizer:
            left["are localizers"] += 1
        else:
            found.append(header)
    what = ", ".join(f"{count} {reason}" for reason, count in left.items()) + (f" (such as {odd})" if odd else "")
    if not found:
        raise DataError(f"{root} holds no DICOM images: {what or 'it is empty'}; check dataset.path")
    if left:
        log.warning("%s: of %d files, %s: left out", root, len(found) + left.total(), what)
    return found


def _grouped(headers: Sequence[Header], root: Path, skip: bool) -> list[Series]:
    series: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    twins = 0
    seen = set()
    for header in headers:
        key = ("series", header.series) if header.series else ("folder", str(header.path.parent))
        mark = (key, header.instance, header.place)
        if header.instance is not None and mark in seen:
            twins += 1
            continue
        seen.add(mark)
        alone = header.frames > 1 or flat(header)
        series[(*key, str(header.path)) if alone else key].append(header)
    if twins:
        log.warning("%s: %d files are copies of others: left out", root, twins)
    owners = defaultdict(set)
    for key, members in series.items():
        for member in members:
            owners[member.path.parent].add(key)
    found: list[Series] = []
    patients: dict[tuple[str, ...], str] = {}
    named = {key: _series_name(members, owners, root) for key, members in series.items()}
    for key in sorted(series, key=named.__getitem__):
        members, name = series[key], named[key]
        patient = next((("patient", member.patient) for member in members if member.patient), key)
        if len(members) > 1:
            try:
                _look_over([member.place for member in members], name)
            except DataError as error:
                if not skip:
                    raise
                log.warning("%s: left out, %s", root, error)
                continue
        group = patients.setdefault(patient, name)
        found.append(Series(tuple(member.path for member in members), name, group, flat(members[0])))
    return found


def _look_over(places: Sequence[Place], name: str) -> None:
    """Warn of what is odd in a series, or raise the DataError that `read` would raise."""
    for volume in arrange(places, name):
        steps([places[index] for index in volume], name)
    if any(place.position is None for place in places):
        log.warning("%s: the headers do not say where all slices lie: they are stacked by their numbers", name)


def flat(header: Header) -> bool:
    """Whether the pictures of a file stand for themselves, as far as the header alone can tell."""
    if header.color or header.modality in PROJECTIONS or "Secondary Capture" in header.kind:
        return True
    place = header.place
    stacked = place.position is not None or (header.modality in STACKS and place.number > 0)
    return header.frames == 1 and not stacked


def _series_name(members: Sequence[Header], owners: dict[Path, set[tuple[str, ...]]], root: Path) -> str:
    folder = members[0].path.parent
    whole = len(members) > 1 and folder != root and {m.path.parent for m in members} == {folder}
    return _name(folder if whole and len(owners[folder]) == 1 else members[0].path, root)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
