"""A file is complete under its name or not there at all, and what was there before is kept until then."""

import os
import threading
from pathlib import Path

import pytest
from helpers.runs import full_disk

from alexnet_jax import UserError
from alexnet_jax.files import alone, expanded, locked, replacing, write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    path = tmp_path / "table.md"
    path.write_text("old")
    return path


def test_a_second_reader_and_writer_of_a_folder_waits(tmp_path):
    order = []

    def second():
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_a_file_appears_when_it_is_complete(path):
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(path.parent) == ["table.md"]
    with replacing(path.with_name("other.md")) as partial:
        partial.write_text("first")
    assert path.with_name("other.md").read_text() == "first"
    write_text(path, "größer")
    assert path.read_bytes() == b"gr\xc3\xb6\xc3\x9fer" and names(path.parent) == ["other.md", "table.md"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError, UserError])
def test_a_failure_keeps_what_was_there(path, raised):
    for target in (path, path.with_name("other.md")):
        with pytest.raises(raised), replacing(target) as partial:
            partial.write_text("half of")
            raise raised
    assert path.read_text() == "old" and names(path.parent) == ["table.md"]


def test_a_writer_that_writes_nothing_makes_an_empty_file(path):
    with replacing(path):
        pass
    assert path.read_bytes() == b""


def test_a_writer_may_replace_the_temporary_file(path):
    """Some libraries rename a file of their own to the path that they are given."""
    own = path.with_name("own")
    with replacing(path) as partial:
        own.write_text("new")
        own.rename(partial)
    assert path.read_text() == "new"
    with pytest.raises(ValueError), replacing(path) as partial:
        own.write_text("newer")
        own.rename(partial)
        raise ValueError
    assert path.read_text() == "new" and names(path.parent) == ["table.md"]


def test_a_user_that_does_not_exist_is_named():
    assert expanded("~/x") == Path.home() / "x" and expanded("a~b") == Path("a~b")
    with pytest.raises(UserError, match="~nobody_of_this_name/x: there is no user of this name"):
        expanded("~nobody_of_this_name/x")


def test_folders_devices_and_pipes_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    before = names(tmp_path)
    for name, says in (("folder", "is a folder: name a file in it"), ("pipe", "a pipe"), ("null", "is a device")):
        with (
            pytest.raises(UserError, match=f"cannot write {tmp_path / name}, which .*{says}"),
            replacing(tmp_path / name),
        ):
            raise AssertionError("the block must not run")
    assert names(tmp_path) == before and (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    folders = ["none", "file"] + (["closed"] if os.geteuid() else [])  # root may write anywhere
    for folder in folders:
        path = tmp_path / folder / "a.md"
        with (
            pytest.raises(UserError, match=f"cannot write {path} .*: free some space") as error,
            replacing(path) as partial,
        ):
            partial.write_text("new")
        assert "\n" not in str(error.value)
    assert names(tmp_path) == ["closed", "file"] and names(tmp_path / "closed") == []


def test_a_full_disk_keeps_what_was_there(path):
    too_large = pytest.raises(UserError, match=r"cannot write .*table.md \(File too large\)")
    with full_disk(10_000), too_large, replacing(path) as partial:
        partial.write_bytes(bytes(20_000))
    assert path.read_text() == "old" and names(path.parent) == ["table.md"]


def test_one_process_writes_at_a_time_and_takes_over_what_a_killed_one_left(path):
    partial = path.with_name("table.md.tmp")
    partial.write_bytes(bytes(10**6))
    with alone(partial), pytest.raises(UserError, match=f"another process writes {path}: "), replacing(path):
        raise AssertionError("the block must not run")
    assert path.read_text() == "old"
    partial.write_bytes(bytes(10**6))
    with replacing(path) as mine:
        assert mine == partial and mine.stat().st_size == 0
        mine.write_text("new")
    assert path.read_text() == "new" and names(path.parent) == ["table.md"]
