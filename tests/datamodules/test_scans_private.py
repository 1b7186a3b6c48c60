"""Nothing that a header says of a person leaves memory: a mark in every field is sought in all that is written."""

import logging
import pickle
import shutil
import traceback
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from datamodules.arrays.split import SPLITS
from datamodules.batch import DataError
from datamodules.dicom import Dicom
from datamodules.nifti import Nifti
from tests.datamodules.scanner import body, write_nifti, write_series
from tests.training import run_training

pytestmark = pytest.mark.slow

MARK, DIGITS = "Doe^Jane1955", "7362519408"
"""What is sought: the text, and the number in every unique identifier."""
TEXT = {"LO", "SH", "PN", "ST", "LT", "UT", "UC", "UR", "AE", "CS"}
NUMBER = {"DA", "TM", "DT", "AS", "IS", "DS"}
"""Types whose values pydicom checks: a mark there makes its warnings quote it."""
NEEDED = {
    "Modality", "ImageType", "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept",
    "InstanceNumber", "NumberOfFrames", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "WindowCenter",
    "WindowWidth", "VOILUTFunction", "BurnedInAnnotation", "SpecificCharacterSet", "PixelPaddingValue",
    "SOPClassUID",
}  # fmt: skip
PROFILE = {
    "PatientName", "PatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex", "PatientAge", "PatientSize",
    "PatientWeight", "OtherPatientIDs", "OtherPatientNames", "PatientAddress", "PatientTelephoneNumbers",
    "PatientMotherBirthName", "MilitaryRank", "EthnicGroup", "Occupation", "AdditionalPatientHistory",
    "PatientComments", "PatientReligiousPreference", "MedicalRecordLocator", "InstitutionName",
    "InstitutionAddress", "InstitutionalDepartmentName", "StationName", "AccessionNumber", "ReferringPhysicianName",
    "ReferringPhysicianAddress", "PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy",
    "OperatorsName", "RequestingPhysician", "RequestingService", "StudyID", "StudyDate", "SeriesDate",
    "AcquisitionDate", "ContentDate", "StudyTime", "SeriesTime", "StudyDescription", "SeriesDescription",
    "ProtocolName", "DerivationDescription", "ImageComments", "DeviceSerialNumber", "StudyInstanceUID",
    "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "IssuerOfPatientID", "PersonName",
}  # fmt: skip
"""Of the basic profile, DICOM PS3.15 Annex E: these at least must have been marked."""


def raw(key: str, value: str) -> RawDataElement:
    """A field with any text, valid or not."""
    data = value.encode() + b"\0" * (len(value) % 2)
    return RawDataElement(Tag(tag_for_keyword(key)), dictionary_VR(key), len(data), data, 0, False, True)


def marks() -> dict[str, RawDataElement]:
    """A mark in every field of the standard that holds text, or a date or a number as text."""
    found = {}
    for tag, (vr, *_) in DicomDictionary.items():
        key = keyword_for_tag(tag)
        # Groups up to 6 are of messages and media.
        if tag >> 16 > 6 and key and key not in NEEDED and vr in TEXT | NUMBER | {"UI"}:
            found[key] = raw(key, f"1.2.{DIGITS}" if vr == "UI" else MARK)
    return found


def mark(found: Dataset, everywhere: dict[str, RawDataElement]) -> None:
    study, series, image = (found[key].value for key in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    for element in everywhere.values():
        found[element.tag] = element
    for key, uid in {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": image}.items():
        found[key] = raw(key, f"1.2.{DIGITS}.{uid.split('.')[-1]}")
    found["PatientID"] = raw("PatientID", f"{MARK} {study.split('.')[-1]}")
    nested = Dataset()
    nested.PatientID = nested.PatientName = MARK
    found.OtherPatientIDsSequence = found.RequestAttributesSequence = Sequence([nested])
    found.private_block(0x0009, MARK, create=True).add_new(1, "LO", MARK)
    found.file_meta.SourceApplicationEntityTitle = MARK
    found.preamble = (MARK.encode() + bytes(128))[:128]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Six patients of whom every header field tells, in files with harmless names."""
    folder, everywhere = tmp_path_factory.mktemp("original"), marks()
    assert everywhere.keys() >= PROFILE and len(everywhere) > 1500
    # All fields in some files only, for it takes pydicom long to skip them.
    fewer = {key: element for key, element in everywhere.items() if key in PROFILE}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
        warnings.simplefilter("ignore")
        for number in range(12):
            one = {"series": f"1.2.{number}", "StudyInstanceUID": f"1.3.{number % 6}"}
            for path in write_series(folder / f"scan{number:02d}", body((3, 8, 8), seed=number), **one):
                found = dcmread(path)
                mark(found, everywhere if number in (0, 3) else fewer)
                found.save_as(path)
    data = (folder / "scan03" / "IM0001").read_bytes()
    assert data.count(MARK.encode()) > 1000 and data.count(DIGITS.encode()) > 50
    return folder


@pytest.fixture
def clinic(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "clinic"))


def told(*texts: object) -> bool:
    """Whether any of these bytes or texts holds a mark."""
    for found in texts:
        data = found if isinstance(found, bytes) else str(found).encode()
        for sought in (MARK, MARK[:8], "Jane", DIGITS):
            if sought.lower().encode() in data.lower() or sought.encode("utf-16-le") in data:
                return True
    return False


def assert_untold(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if told(path.read_bytes(), path)]
    return len(files)


def test_a_mark_would_be_found(clinic, tmp_path):
    assert told("x doe^jane y".upper()) and told((clinic / "scan00" / "IM0000").read_bytes())
    with pytest.raises(AssertionError):
        assert_untold(clinic)
    found = Dataset()
    found["FrameOfReferenceUID"] = raw("FrameOfReferenceUID", MARK)
    with pytest.warns(UserWarning, match="Doe"):  # what pydicom says by itself
        _ = found.FrameOfReferenceUID


def test_nothing_of_a_patient_is_kept_or_said(clinic, tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    data = Dicom(path=str(clinic), size=8, cache=str(tmp_path / "cache"), val=0.2, test=0.2)
    data.std(), data.fingerprint()
    # Both series of a patient are on one side, so their numbers were used.
    for split in SPLITS:
        numbers = sorted(int(name[4:]) % 6 for name, side, _ in data.files if side == split)
        assert numbers and numbers[::2] == numbers[1::2]
    assert assert_untold(tmp_path / "cache") >= 5
    assert not told(pickle.dumps(data), data.files, data.names, data.items(), vars(data), data.spec)
    assert not told(caplog.text, *capfd.readouterr()) and not [w for w in recwarn if told(w.message)]


def spoil(clinic: Path, kind: str) -> None:
    path = clinic / "scan03" / "IM0001"
    if kind == "header":
        data = path.read_bytes()
        place = data.index(b"\x28\x00\x10\x00US")  # Rows
        path.write_bytes(data[:place] + b"\x28\x00\x10\x00IS\x04\x00Jane" + data[place + 10 :])
    elif kind == "pixels":
        path.write_bytes(path.read_bytes()[:-30])
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = dcmread(path)
            if kind == "size":
                found.Rows, found.Columns = found.Columns, found.Rows
            elif kind == "syntax":
                found.file_meta.TransferSyntaxUID = MARK
            else:
                found[kind] = raw(kind, MARK)
            found.save_as(path, implicit_vr=False, little_endian=True)


KINDS = ["header", "pixels", "size", "syntax", "InstanceNumber", "NumberOfFrames", "PixelSpacing", "RescaleSlope",
         "PhotometricInterpretation", "Modality", "ImagePositionPatient", "WindowCenter", "SOPClassUID"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_errors_do_not_quote_headers_even_where_these_are_the_cause(
    clinic, tmp_path, caplog, capfd, recwarn, kind, unreadable
):
    spoil(clinic, kind)
    caplog.clear(), recwarn.clear()
    caplog.set_level(logging.DEBUG)
    try:
        Dicom(path=str(clinic), size=8, cache=str(tmp_path / "cache"), unreadable=unreadable).setup()
    except DataError as error:
        assert not told(error, *traceback.format_exception(error))
    assert not told(caplog.text, *capfd.readouterr()) and not [w for w in recwarn if told(w.message)]
    if (tmp_path / "cache").exists():
        assert_untold(tmp_path / "cache")


def test_nothing_of_a_nifti_header_is_kept_or_said(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    for number in range(6):
        path = write_nifti(tmp_path / "clinic" / f"scan{number}.nii", body(seed=number))
        image = nibabel.load(path)
        for key in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[key] = MARK
        for code in ("comment", "afni", "dicom"):
            told_by = MARK.encode() if code != "dicom" else b"\x10\x00\x10\x00PN\x0c\x00" + MARK.encode()
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, told_by))
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
        assert path.read_bytes().count(MARK.encode()) >= 7
    data = Nifti(path=str(tmp_path / "clinic"), size=8, cache=str(tmp_path / "cache"))
    data.fingerprint()
    assert assert_untold(tmp_path / "cache") >= 4
    assert not told(pickle.dumps(data), data.files, data.names)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        Nifti(path=str(tmp_path / "clinic"), size=8, cache=str(tmp_path / "cache")).setup()
    assert not told(*traceback.format_exception(caught.value), caplog.text, *capfd.readouterr())


@pytest.mark.slow
def test_no_file_of_a_run_tells_of_a_patient(clinic, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    options = [f"dataset.path={clinic}", "dataset.size=8", f"dataset.cache={tmp_path / 'cache'}"]
    run = run_training(tmp_path / "runs", "dataset=dicom", *options, "trainer.max_steps=2", "callbacks=default")
    assert (run / "splits.csv").read_text().count("scan") == 12
    assert assert_untold(tmp_path / "runs") > 5 and assert_untold(tmp_path / "cache") > 4
    assert not told(caplog.text, *capfd.readouterr())
