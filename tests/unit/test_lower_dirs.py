"""What a snapshotter's mounts say about an image's layers."""

import pytest

from agent.containerd.snapshots import SnapshotMount, lower_dirs
from agent.errors import Bug


def test_one_layer_is_a_bind() -> None:
    assert lower_dirs([SnapshotMount("bind", "/s/1/fs", ("ro", "rbind"))]) == ("/s/1/fs",)


def test_several_are_an_overlay_topmost_first() -> None:
    options = ("index=off", "userxattr", "lowerdir=/s/3/fs:/s/2/fs:/s/1/fs")
    assert lower_dirs([SnapshotMount("overlay", "overlay", options)]) == (
        "/s/3/fs",
        "/s/2/fs",
        "/s/1/fs",
    )


def test_escaped_colons_belong_to_the_path() -> None:
    mount = SnapshotMount("overlay", "overlay", (r"lowerdir=/a\:b/1:/a\:b/2",))
    assert lower_dirs([mount]) == ("/a:b/1", "/a:b/2")


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [SnapshotMount("ext4", "/dev/sda")],
        [SnapshotMount("overlay", "overlay", ("upperdir=/u",))],
        [SnapshotMount("bind", "/a"), SnapshotMount("bind", "/b")],
    ],
)
def test_anything_else_is_a_bug(mounts: list[SnapshotMount]) -> None:
    with pytest.raises(Bug):
        lower_dirs(mounts)
