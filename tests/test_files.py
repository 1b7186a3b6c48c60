"""A file is whole or not there."""

import os
import signal

import pytest

from diffusion.files import remove_temporaries, replace_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_makes_and_replaces(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda temporary: temporary.write_text("first"))
    replace_file(path, lambda temporary: temporary.write_text("second"))
    assert path.read_text() == "second" and names(tmp_path) == ["file"]


def test_the_old_file_is_there_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # a rename across disks would not be atomic

    replace_file(path, write)
    assert path.read_text() == "new"


def test_the_old_file_can_be_kept(tmp_path):
    path, keep = tmp_path / "file", tmp_path / "before"
    for text in ("1", "2", "3"):
        replace_file(path, lambda temporary, text=text: temporary.write_text(text), keep=keep)
    assert (path.read_text(), keep.read_text()) == ("3", "2")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_changes_nothing(tmp_path, error):
    path, keep = tmp_path / "file", tmp_path / "before"
    path.write_text("old")
    keep.write_text("older")

    def half(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(error):
        replace_file(path, half, keep=keep)
    assert (path.read_text(), keep.read_text()) == ("old", "older")
    assert names(tmp_path) == ["before", "file"]


def test_a_kill_leaves_the_old_file_and_what_it_leaves_can_be_removed(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    child = os.fork()
    if child == 0:
        replace_file(path, lambda temporary: (temporary.write_text("ne"), os.kill(os.getpid(), signal.SIGKILL)))
    os.waitpid(child, 0)
    assert path.read_text() == "old" and len(names(tmp_path)) == 2
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["file"]


def test_nothing_to_remove(tmp_path):
    remove_temporaries(tmp_path / "missing")
