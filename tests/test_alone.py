"""files.alone: one process at a time holds a file, and what a killed one left is taken over."""

import threading
import time

import pytest

from alexnet_jax.files import alone


def test_one_process_holds_a_file_which_is_removed_afterwards(tmp_path):
    path = tmp_path / "lock"
    path.write_text("left by a killed process")
    with alone(path) as file:
        assert path.read_bytes() == b""
        file.write(b"mine")
        with pytest.raises(BlockingIOError), alone(path):
            pass
    assert not path.exists()
    with alone(path) as file:
        path.rename(tmp_path / "kept")
        path.write_text("another's")
    assert path.read_text() == "another's" and (tmp_path / "kept").exists()


def test_many_threads_hold_a_file_one_after_the_other(tmp_path):
    inside, most, done = 0, 0, 0

    def work():
        nonlocal inside, most, done
        for _ in range(50):
            with alone(tmp_path / "lock", busy=lambda: None):
                inside += 1
                most = max(most, inside)
                time.sleep(0)  # another thread may run, and must not be inside
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 300) and list(tmp_path.iterdir()) == []
