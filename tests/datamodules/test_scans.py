"""The sources dicom and nifti, from files to splits."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread

from datamodules import dicom
from datamodules.arrays.split import SPLITS
from datamodules.batch import DataError
from datamodules.dicom import Dicom
from datamodules.nifti import Nifti
from tests.datamodules.scanner import body, save, with_pixels, write_nifti, write_series

pytestmark = pytest.mark.slow


@pytest.fixture
def study(tmp_path) -> Path:
    """Ten patients with two series each; the names of folders tell nothing of who is who."""
    folder = tmp_path / "study"
    for patient in range(10):
        for visit in range(2):
            number = patient + 10 * visit
            write_series(
                folder / f"scan{number:02d}",
                body(seed=number),
                series=f"1.2.{number}",
                PatientID=f"P{patient}",
                StudyInstanceUID=f"1.3.{number}",
            )
    return folder


def source(kind: type, folder: Path, **options):
    return kind(path=str(folder), cache=str(folder.parent / "cache"), **{"size": 8} | options)


def sides(data) -> dict[str, set[str]]:
    return {split: {name for name, side, _ in data.files if side == split} for split in SPLITS}


def test_slices_of_all_series_with_each_patient_on_one_side(study):
    data = source(Dicom, study, val=0.2, test=0.2)
    assert data.spec.shape == (1, 8, 8) and data.spec.classes is None
    assert [len(data.split(name)) for name in SPLITS] == [12 * 6, 4 * 6, 4 * 6]
    assert data.split("train").images.dtype is torch.int16
    for names in sides(data).values():
        assert {int(name[4:]) % 10 for name in names if int(name[4:]) < 10} == {int(n[4:]) % 10 for n in names}
    name = data.names["train"][0]
    assert name.endswith(" axial 0") and name.split()[0] in sides(data)["train"]
    assert (
        -1 <= data.split("val")[torch.arange(4)]["image"].min() < data.split("val")[torch.arange(4)]["image"].max() <= 1
    )


def test_without_patients_the_study_counts_and_a_pattern_before_all(study):
    for path in study.rglob("IM*"):
        found = dcmread(path)
        found.PatientID = ""
        found.StudyInstanceUID = f"1.3.{int(path.parent.name[4:]) // 4}"
        save(found, path)
    names = sides(source(Dicom, study, val=0.2, test=0.2)).values()
    assert all(len({int(name[4:]) // 4 for name in side}) * 4 == len(side) for side in names)
    names = sides(source(Dicom, study, val=0.2, test=0.2, patient=r"scan\d(\d)")).values()
    assert all(len({name[5] for name in side}) * 2 == len(side) for side in names)


def test_three_dimensional_patches(study):
    data = source(Dicom, study, output="patches", size=6, window=[40, 400], spacing=3.0, least=0.0)
    assert data.spec.shape == (1, 6, 6, 6)
    assert data.names["val"][0].endswith(" patch 0,0,0")


def test_what_was_prepared_is_read_again_and_made_anew_for_other_files(study, monkeypatch):
    first = source(Dicom, study).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(dicom, "read", None)
        patch.setattr(dicom, "find", None)
        assert source(Dicom, study).fingerprint() == first
        stored = source(Dicom, study, memory=0.0)
        assert stored.split("train").stored and stored.fingerprint() == first
    path = sorted(study.rglob("IM*"))[40]
    found = dcmread(path)
    save(with_pixels(found, found.pixel_array + 100), path)
    os.utime(path, ns=(1, 1))
    assert source(Dicom, study).fingerprint() != first


def test_damage_that_appears_later_is_not_hidden_by_the_cache(study):
    source(Dicom, study).setup()
    path = sorted(study.rglob("IM*"))[3]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"1 of 20 files cannot be read: scan00; .*IM0003 is cut short"):
        source(Dicom, study).setup()
    kept = source(Dicom, study, unreadable="skip")
    kept.setup()
    assert len(kept.files) == 19


def test_labels_patients_and_splits_of_a_table(study, tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"scan{i:02d},{'ab'[i % 2]},{i},{['train', 'train', 'val', 'test'][i // 2 % 4]}" for i in range(20)]
    rows[3] = rows[3].replace("scan03", "scan03/IM0002")
    table.write_text("\n".join(["path,label,patient,split", *rows]))
    data = source(Dicom, study, labels=str(table))
    assert data.spec.classes == 2 and data.class_names == ("a", "b")
    assert {name: (side, label) for name, side, label in data.files}["scan03"] == ("train", "b")
    table.write_text("path,label\n.,all\nscan04,special\n")
    labels = {name: label for name, _, label in source(Dicom, study, labels=str(table), test=0.3).files}
    assert labels["scan04"] == "special" and set(labels.values()) == {"all", "special"}


BAD = {
    "line 3: no scan under .* lies at scan99": "scan00,a\nscan99,b",
    "line 3: scan00 is named in line 2": "scan00,a\nscan00,b",
    "lines 2 and 3: files of one scan, scan00, differ in label": "scan00/IM0000,a\nscan00/IM0001,b",
}


@pytest.mark.parametrize("message", BAD)
def test_each_bad_table_is_named(study, tmp_path, message):
    (tmp_path / "labels.csv").write_text(f"path,label\n{BAD[message]}\n")
    with pytest.raises(DataError, match=message) as caught:
        source(Dicom, study, labels=str(tmp_path / "labels.csv")).setup()
    assert "\n" not in str(caught.value)


def test_one_patient_alone_is_refused(study, caplog):
    for path in study.rglob("IM*"):
        found = dcmread(path)
        found.PatientID = "anonymous"
        save(found, path)
    with pytest.raises(DataError, match="too few"):
        source(Dicom, study).setup()
    assert "all series carry one PatientID" in caplog.text and "anonymous" not in caplog.text


def test_scans_with_nothing_in_them_are_said(study, caplog):
    for path in (study / "scan03").iterdir():
        found = dcmread(path)
        save(with_pixels(found, np.zeros((10, 8), np.uint16)), path)
    data = source(Dicom, study)
    assert sum(len(data.split(name)) for name in SPLITS) == 19 * 6
    assert "scan03: nothing in it reaches dataset.least=0.02" in caplog.text


def test_volumes_with_masks(tmp_path):
    for number in range(6):
        values = body(seed=number)
        write_nifti(tmp_path / "data" / "images" / f"case{number}.nii.gz", values, "RAS")
        write_nifti(tmp_path / "data" / "masks" / f"case{number}.nii.gz", (values > 0) * np.int16(2), "RAS")
    options = {"images": "images/*.nii.gz", "masks": "masks/*.nii.gz", "values": [0, 2]}
    data = source(Nifti, tmp_path / "data", **options)
    assert data.spec.shape == (1, 8, 8) and data.spec.mask_classes == 2
    batch = data.split("train")[torch.arange(3)]
    assert batch["mask"].shape == (3, 1, 8, 8) and batch["mask"].unique().tolist() == [0, 1]
    assert batch["image"][batch["mask"] == 1].mean() > batch["image"][batch["mask"] == 0].mean() + 0.5
    assert data.names["train"][0].startswith("images/case")
    # Each scan that has a mask must have been given one.
    (tmp_path / "data" / "masks" / "case3.nii.gz").unlink()
    with pytest.raises(DataError, match=r"1 of 6 scans have no mask, the first images/case3.nii.gz"):
        source(Nifti, tmp_path / "data", **options).setup()


def test_unreadable_volumes_are_refused_or_skipped(tmp_path):
    for number in range(6):
        write_nifti(tmp_path / "data" / f"{number}.nii", body(seed=number))
    (tmp_path / "data" / "4.nii").write_bytes(b"x" * 500)
    with pytest.raises(DataError, match=r"1 of 6 files cannot be read: 4.nii; the first: .*4.nii is no NIfTI file"):
        source(Nifti, tmp_path / "data").setup()
    data = source(Nifti, tmp_path / "data", unreadable="skip", val=0.3, test=0.3)
    assert len(data.files) == 5


@pytest.mark.parametrize(("kind", "library"), [(Dicom, "pydicom"), (Nifti, "nibabel")])
def test_a_missing_library_is_named_with_its_cure(tmp_path, monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=rf"needs {library}: python -m pip install -e .*\[(dicom|nifti)\]"):
        source(kind, tmp_path).setup()


@pytest.mark.parametrize("kind", [Dicom, Nifti])
def test_bad_paths_and_options_are_named(tmp_path, kind):
    with pytest.raises(DataError, match=r"dataset.path is not set: .*the folder that holds the (DICOM|NIfTI) files"):
        kind()
    with pytest.raises(DataError, match="absent does not exist"):
        source(kind, tmp_path / "absent").setup()
    with pytest.raises(DataError, match="holds no"):
        source(kind, tmp_path).setup()
    with pytest.raises(DataError, match=r"dataset.axis=up"):
        source(kind, tmp_path, axis="up")
