"""Trees as hostile functions leave them, on a real file system: what goes and what stays.

Trees with mounts in them, and on full disks, are in test_kernel_calls.py.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent.linux import trees
from agent.rootless import leftovers

WITHIN_S = 60.0
DEPTH = 2000
LONG = "n" * 200  # with it, twenty levels are longer than any path may be
# include/uapi/linux/fs.h
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10
NOBODY = 65534
PR_SET_DUMPABLE = 4


@pytest.fixture
def tree(tmp_path):
    found = tmp_path / "tree"
    found.mkdir()
    yield found
    # pytest's own clearing up knows no such trees
    subprocess.run(["rm", "-rf", found], check=False)


@contextmanager
def opened(path, dir_fd=None):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def nest(directory, names):
    """Make one directory in the other; in each a file beside the next."""
    here = os.open(directory, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)


def thousands_deep(tree):
    nest(tree, ["d"] * DEPTH)


def longer_than_a_path(tree):
    nest(tree, [LONG] * 100)


def wide_and_deep(tree):
    for number in range(30):
        (tree / str(number)).mkdir()
        nest(tree / str(number), ["d", "e"] * 40)


def many_directories_in_one(tree):
    for number in range(3000):
        (tree / f"d{number}" / "inner").mkdir(parents=True)


def names_that_are_no_text(tree):
    for name in (b"\xff\xfe", b"\n", b"\x1b[2J", b" ", b"-rf", b"*", b"..."):
        directory = os.path.join(os.fsencode(tree), name)
        os.mkdir(directory)
        Path(os.fsdecode(directory), "\udcff").write_text("x")


def directories_without_rights(tree):
    for mode in (0o000, 0o100, 0o400, 0o555, 0o7000):
        (tree / f"{mode:o}" / "inner").mkdir(parents=True)
        (tree / f"{mode:o}" / "inner" / "file").touch(mode=0)
        (tree / f"{mode:o}" / "inner").chmod(mode)
        (tree / f"{mode:o}").chmod(mode)


def every_kind_of_file(tree):
    (tree / "file").write_text("x")
    os.link(tree / "file", tree / "again")
    os.mkfifo(tree / "fifo")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "itself").symlink_to(tree)
    (tree / "upwards").symlink_to("..")
    (tree / "root").symlink_to("/")


KINDS = [
    thousands_deep,
    longer_than_a_path,
    wide_and_deep,
    many_directories_in_one,
    names_that_are_no_text,
    directories_without_rights,
    every_kind_of_file,
]
by_name = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


@by_name
def test_a_tree_of_any_kind_is_emptied(tree, make):
    make(tree)
    assert trees.empty(tree, within_s=WITHIN_S) == []
    assert os.listdir(tree) == []


@by_name
def test_a_tree_of_any_kind_is_emptied_by_its_owner_who_is_not_root(tree, make, unprivileged):
    with unprivileged(tree) as mine:
        make(mine)
        trees.empty_or_raise(mine, within_s=WITHIN_S)
    assert os.listdir(tree) == []


@by_name
def test_a_tree_of_any_kind_goes_with_hardly_any_memory_for_names(tree, make, monkeypatch):
    monkeypatch.setattr(trees, "_MAX_NAMES", 3)
    make(tree)
    assert trees.remove(tree, within_s=WITHIN_S)
    assert not tree.exists()


@pytest.fixture
def unprivileged(monkeypatch):
    """Give a tree to nobody, and be nobody, in it, for a while."""

    @contextmanager
    def found(tree):
        if os.geteuid() == 0:
            os.chown(tree, NOBODY, NOBODY)
        # Not by its path: whoever runs the tests keeps the way to it for itself.
        monkeypatch.chdir(tree)
        before = os.geteuid()
        if before == 0:
            os.seteuid(NOBODY)
            # A change of user takes /proc/self away, unlike a start as that user (proc(5)).
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        try:
            yield Path()
        finally:
            os.seteuid(before)

    return found


def test_a_thousand_nested_directories_do_not_stop_the_clearing_of_the_run_directory(tree):
    (tree / "lock").touch()
    thousands_deep(tree)
    assert leftovers.clear_directory(tree, keep=("lock",)) == []
    assert os.listdir(tree) == ["lock"]


def test_links_are_removed_and_not_what_they_lead_to(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (tree / "link").symlink_to(outside)
    (tree / "inner").mkdir()
    (tree / "inner" / "link").symlink_to(outside)
    assert trees.remove(tree / "link", within_s=WITHIN_S)
    trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert (outside / "file").read_text() == "kept"


def test_what_is_kept_is_kept_at_the_top_only(tree):
    for name in ("lock", "x/lock", "kept/x"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    trees.empty_or_raise(tree, ("lock", "kept"), within_s=WITHIN_S)
    assert sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*")) == [
        "kept",
        "kept/x",
        "lock",
    ]


def test_nothing_there_and_what_is_no_directory(tree):
    (tree / "file").touch()
    assert trees.empty(tree / "none", within_s=WITHIN_S) == []
    assert trees.empty(tree / "file", within_s=WITHIN_S) == [tree / "file"]
    with pytest.raises(FileNotFoundError):
        trees.empty_or_raise(tree / "none", within_s=WITHIN_S)
    assert trees.remove(tree / "none", within_s=WITHIN_S)
    assert trees.remove(tree / "none" / "inner", within_s=WITHIN_S)
    assert trees.remove(tree / "file", within_s=WITHIN_S)
    assert not (tree / "file").exists()


# What stays


@pytest.fixture
def staying(tree):
    """A file that nobody may remove, with others before and behind it, and deep trees beside it."""
    place = tree / "5" / "inner"
    for number in range(10):
        (tree / str(number) / "inner" / "most").mkdir(parents=True)
        (tree / str(number) / "inner" / "file").touch()
    with open(place / "file", "rb") as file:
        try:
            set_immutable(file.fileno(), True)
        except OSError as error:
            pytest.skip(f"files cannot be made immutable here: {error.strerror}")
        yield place / "file"
        set_immutable(file.fileno(), False)


def set_immutable(fd, on):
    (flags,) = struct.unpack("L", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8)))
    flags = flags | FS_IMMUTABLE_FL if on else flags & ~FS_IMMUTABLE_FL
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("L", flags))


def test_what_may_not_be_removed_stays_and_all_else_goes(tree, staying):
    assert trees.empty(tree, within_s=WITHIN_S) == [tree / "5"]
    left = [path for path in tree.rglob("*") if path.is_file()]
    assert left == [staying]
    assert list(staying.parent.iterdir()) == [staying]
    assert not trees.remove(tree, within_s=WITHIN_S)


def test_what_may_not_be_removed_is_named_where_nothing_may_stay(tree, staying):
    with pytest.raises(PermissionError, match=r"'file'.*tree"):
        trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert staying.exists()


def test_what_may_not_be_removed_in_great_number_ends_the_walk(tree, staying, monkeypatch):
    monkeypatch.setattr(trees, "_MAX_STAYING", 0)
    assert tree / "5" in trees.empty(tree, within_s=WITHIN_S)
    assert staying.exists()


# Trees that change meanwhile


@pytest.fixture
def before_each(monkeypatch):
    """Do something right before the real removal of an entry of some name."""

    def found(call, name, action):
        real = getattr(os, call)

        def wrapped(path, *more, **where):
            if path == name:
                action()
            return real(path, *more, **where)

        monkeypatch.setattr(os, call, wrapped)

    return found


def test_a_directory_that_is_moved_meanwhile_leads_nowhere_else(tree, tmp_path, before_each):
    outside = tmp_path / "outside"
    (outside / "a").mkdir(parents=True)
    (outside / "a" / "canary").touch()
    (outside / "canary").touch()
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "trigger").touch()
    (tree / "rest").touch()

    def move():
        (tree / "a" / "b").rename(outside / "b")

    before_each("unlink", "trigger", move)
    trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert os.listdir(tree) == []
    assert sorted(path.name for path in outside.rglob("*")) == ["a", "b", "canary", "canary"]


@pytest.mark.parametrize("becomes", ["nothing", "link", "file", "directory"])
@pytest.mark.parametrize(
    ("was", "call"), [("file", "unlink"), ("directory", "rmdir"), ("full", "open")]
)
def test_an_entry_that_is_another_by_the_time_it_is_removed(
    tree, tmp_path, before_each, was, call, becomes
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").touch()
    entry, away = tree / "inner" / "entry", tmp_path / "away"
    entry.parent.mkdir()
    kinds = {
        "nothing": lambda: None,
        "link": lambda: entry.symlink_to(outside),
        "file": entry.touch,
        "directory": entry.mkdir,
        "full": lambda: (entry / "x").mkdir(parents=True),
    }
    kinds[was]()

    def swap():
        if not away.exists():
            entry.rename(away)
            kinds[becomes]()

    before_each(call, "entry", swap)
    trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert away.exists()
    assert os.listdir(tree) == []
    assert (outside / "canary").exists()


@pytest.fixture
def refilled(tree):
    """A tree to whose deepest directory somebody adds files all the time."""
    over = threading.Event()
    (tree / "a" / "b").mkdir(parents=True)

    def fill():
        number = 0
        while not over.is_set():
            with suppress(OSError):
                (tree / "a" / "b").mkdir(parents=True, exist_ok=True)
                (tree / "a" / "b" / str(number)).touch()
            number += 1

    thread = threading.Thread(target=fill)
    thread.start()
    yield tree
    over.set()
    thread.join()


def test_whoever_refills_a_directory_does_not_hold_it_up_for_ever(refilled):
    # Whether it wins or loses is a matter of luck; that it comes back is not.
    with suppress(OSError):
        trees.empty_or_raise(refilled, within_s=0.3)
    trees.empty(refilled, within_s=0.3)
    trees.remove(refilled, within_s=0.3)


def test_what_does_not_fit_into_the_time_is_told(tree):
    (tree / "a" / "b").mkdir(parents=True)
    assert trees.empty(tree, within_s=0) == [tree / "a"]
    with pytest.raises(TimeoutError, match="not removed in time"):
        trees.empty_or_raise(tree, within_s=0)
    assert not trees.remove(tree, within_s=0)
    assert (tree / "a" / "b").is_dir()


# What it needs


def test_three_descriptors_are_enough_and_none_stays_open(tree, monkeypatch):
    thousands_deep(tree)
    directories_without_rights(tree)
    before = len(os.listdir("/proc/self/fd"))
    most = []
    real = trees._Walk._look

    def looked(walk):
        real(walk)
        most.append(len(os.listdir("/proc/self/fd")))

    monkeypatch.setattr(trees._Walk, "_look", looked)
    trees.empty_or_raise(tree, within_s=WITHIN_S)
    assert max(most) <= before + 3
    assert len(os.listdir("/proc/self/fd")) == before
