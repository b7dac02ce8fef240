"""Directories in a root file system of others: made below it, whatever its links say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.linux import inside


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root/etc").mkdir(parents=True)
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("links", "path", "made"),
    [
        ({}, "/a/b/c", "a/b/c"),
        ({}, "a//./b/", "a/b"),
        ({}, "/etc", "etc"),
        ({}, "/", ""),
        ({"l": "/etc"}, "/l/x/y", "etc/x/y"),
        ({"l": "../../../../etc"}, "/l/x", "etc/x"),
        ({"l": "etc/../etc"}, "/l", "etc"),
        ({"k": "l", "l": "/etc"}, "/k/x", "etc/x"),
    ],
)
def test_directories_are_made_below_the_root(
    tmp_path: Path, root: int, links: dict[str, str], path: str, made: str
) -> None:
    for name, to in links.items():
        (tmp_path / "root" / name).symlink_to(to)
    for _ in range(2):
        inside.make_directories(root, path)
    assert (tmp_path / "root" / made).is_dir()
    assert [entry.name for entry in tmp_path.iterdir()] == ["root"]
    os.close(inside.open_directory(root, path))


@pytest.mark.parametrize(
    ("to", "error"),
    [("nowhere", FileExistsError), ("l", OSError), ("/proc/self/root", FileExistsError)],
)
def test_what_cannot_be_a_directory_is_an_error(
    tmp_path: Path, root: int, to: str, error: type[OSError]
) -> None:
    (tmp_path / "root/l").symlink_to(to)
    with pytest.raises(error):
        inside.make_directories(root, "/l/x")
    (tmp_path / "root/file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        inside.make_directories(root, "/file/x")
    assert sorted(os.listdir(tmp_path / "root")) == ["etc", "file", "l"]
