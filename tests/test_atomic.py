"""A file or a folder is written whole or not at all."""

import pytest

from h2c_hf.atomic import atomic, write_text


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "report.json"
    assert write_text(path, "one") == path and write_text(path, "zwölf") == path
    assert path.read_text(encoding="utf-8") == "zwölf" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced(tmp_path):
    path = tmp_path / "bridge"
    for name in ("old", "new"):
        with atomic(path) as temporary_path:
            temporary_path.mkdir()
            (temporary_path / name).touch()
    assert [file.name for file in path.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_failure_leaves_the_old_one(tmp_path, folder):
    path = tmp_path / "kept"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk is full"), atomic(path) as temporary_path:
        temporary_path.mkdir() if folder else temporary_path.write_text("half")
        raise OSError("The disk is full.")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_not_taken_for_the_new_one(tmp_path):
    (tmp_path / "bridge.part").mkdir()
    (tmp_path / "bridge.part" / "half").touch()
    with atomic(tmp_path / "bridge") as temporary_path:
        temporary_path.mkdir()
    assert list((tmp_path / "bridge").iterdir()) == []
