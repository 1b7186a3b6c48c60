from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.batch import DataError
from datamodules.csv_table import CsvTable
from datamodules.folder import Folder
from datamodules.npz import Npz


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def noise(seed: int, shape: tuple[int, ...] = (12, 12, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """PATH/SPLIT/CLASS/FILE with twelve good pictures."""
    for i in range(12):
        split = ["train", "train", "val", "test"][i % 4]
        save(tmp_path / "data" / split / "ab"[i // 4 % 2] / f"{i}.png", noise(i))
    return tmp_path / "data"


def opened(path: Path, **options) -> Folder:
    return Folder(path=str(path), size=8, cache=str(path.parent / "cache"), **options)


def test_a_sound_folder_is_the_data_that_training_sees(folder):
    found = opened(folder).survey()
    assert len(found.files) == 12 and not found.unopened and not found.torn and not found.problems
    assert found.kind == (8, (3, 8, 8)) and {fact.size for fact in found.files} == {(12, 12)}
    trained = opened(folder)
    assert found.data.spec == trained.spec and found.data.names == trained.names
    assert found.data.fingerprint() == trained.fingerprint()


def test_nothing_is_written(folder):
    opened(folder).survey()
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_every_bad_file_is_named_and_the_others_are_used(folder):
    whole = (folder / "train" / "a" / "0.png").read_bytes()
    (folder / "train" / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "val" / "b" / "none.png").write_bytes(b"no picture")
    save(folder / "train" / "b" / "deep.png", noise(20, (12, 12)).astype(np.uint16) * 200)
    save(folder / "test" / "b" / "grey.png", noise(21, (12, 12)))
    found = opened(folder).survey()
    facts = {fact.name: fact for fact in found.files}
    assert {name for name, fact in facts.items() if fact.error} == {"train/a/cut.png", "val/b/none.png"}
    assert facts["train/b/deep.png"].kind == (16, (1, 8, 8)) and facts["test/b/grey.png"].kind == (8, (1, 8, 8))
    assert found.kind == (8, (3, 8, 8)) and sum(map(len, found.data.names.values())) == 12
    with pytest.raises(DataError):
        opened(folder).setup()


def test_a_class_that_train_lacks_is_a_problem_and_left_out(folder):
    save(folder / "val" / "c" / "new.png", noise(30))
    found = opened(folder).survey()
    (problem,) = found.problems
    assert "class c" in problem and found.data.spec.classes == 2
    assert "val/c/new.png" not in found.data.names["val"]


def test_patients_on_several_sides_are_named_and_left_out(tmp_path):
    lines = ["path,label,patient,split"]
    for i in range(12):
        save(tmp_path / f"{i}.png", noise(i))
        lines.append(f"{i}.png,{'ab'[i % 2]},p{i // 2 if i < 2 else i},{['train', 'val', 'test'][i % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = CsvTable(path=str(tmp_path / "table.csv"), size=8, cache=str(tmp_path / "cache"))
    found = table.survey()
    assert found.torn == {"p0": [("0.png", "train"), ("1.png", "val")]}
    assert len(found.files) == 10 and sum(map(len, found.data.names.values())) == 10


def test_when_nothing_is_left_there_are_no_data(folder):
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"")
    found = opened(folder).survey()
    assert found.data is None and "left in val" in found.problems[-1]
    with pytest.raises(DataError, match="does not exist"):
        opened(folder / "nowhere").survey()


def test_time_and_memory_limit_what_is_opened(folder):
    source = opened(folder)
    source.at_once = 4
    found = source.survey(seconds=0.0)
    assert len(found.files) == 1 and found.unopened == 11 and found.data is None
    assert opened(folder, memory=1e-7).survey().unopened == 11


def test_arrays_have_no_files(tmp_path):
    arrays = {f"{split}_images": noise(3, (6, 8, 8)) for split in ("train", "val", "test")}
    np.savez(tmp_path / "data.npz", **arrays)
    data = Npz(str(tmp_path / "data.npz"))
    assert data.survey() is None
    import torch

    part = data.part({name: torch.tensor([4, 1]) for name in ("train", "val", "test")})
    assert len(part.split("val")) == 2 and part.spec == data.spec and part.fingerprint() == data.fingerprint()
    assert torch.equal(part.split("train").images, data.split("train").images[[4, 1]])
