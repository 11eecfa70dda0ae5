"""A file that is being replaced is the old one or the new one, never half of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monai_segloss import files
from monai_segloss.files import replacing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with content."""
    target = tmp_path / "table.csv"
    target.write_text("old")
    return target


def test_the_new_content_takes_the_place_of_the_old(path: Path) -> None:
    with replacing(path) as partial:
        assert partial != path
        assert partial.suffix == ".csv", "writers choose the format by it"
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["table.csv"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.pt"
    with replacing(str(target)) as partial:
        partial.write_bytes(b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_the_old_content_and_nothing_else(path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["table.csv"]


def test_an_error_before_the_first_byte_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), replacing(tmp_path / "new.json"):
        raise ValueError("broken")
    assert os.listdir(tmp_path) == []


KILLED_HALFWAY = """
import os, runpy, signal, sys

replacing = runpy.run_path(sys.argv[1])["replacing"]
with replacing(sys.argv[2]) as partial:
    with partial.open("w") as file:
        file.write("ne")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_content(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_HALFWAY, files.__file__, str(path)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What the killed process left is hidden, and in nobody's way.
    left = [name for name in os.listdir(path.parent) if name != path.name]
    assert len(left) == 1
    assert left[0].startswith(".")
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
