import errno
import os
import stat

import pytest

from util.errors import UserError
from util.files import atomic_write, remove_unfinished, write_text


def test_the_file_appears_when_the_block_ends(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_an_earlier_file_survives_a_failure(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "Grün\n")
    assert (tmp_path / "a.txt").read_bytes() == "Grün\n".encode() and os.listdir(tmp_path) == ["a.txt"]


def test_what_the_disk_refuses_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", source)

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError) as error:
        write_text(tmp_path / "a.txt", "new")
    assert str(error.value) == (f"cannot write {tmp_path}/a.txt: No space left on device. The earlier file of that "
                                "name is intact")
    with pytest.raises(UserError, match="cannot write .*/b.txt: No space left on device$"):
        write_text(tmp_path / "b.txt", "new")
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=f"cannot write .*a.txt: there is no folder {tmp_path}/gone$"):
        write_text(tmp_path / "gone" / "a.txt", "new")


def test_only_unfinished_files_are_removed(tmp_path):
    kept = [".gitignore", "checkpoint.pth", "a.0123abcd", ".log.txt.0123ABCD", ".log.txt.0123abc"]
    for name in (*kept, ".checkpoint.pth.0123abcd", ".log.txt.89ab0000"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123abcd").mkdir()
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".folder.0123abcd"])
