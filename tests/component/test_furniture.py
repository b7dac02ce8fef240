"""What is laid into a writable layer, for every odd thing an image may have in its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import InvalidSpec
from agent.sandbox.furniture import KERNEL_PLACES, MAX_DIRECTORIES, furniture_of
from agent.sandbox.image_files import MAX_LOOKS, ImageFiles

FILES = {"hosts": "127.0.0.1 localhost\n", "hostname": "f-1\n", "resolv.conf": "nameserver x\n"}
Make = Callable[[Path], None]


def usual(layer: Path) -> None:
    (layer / "etc").mkdir(0o755)
    (layer / "tmp").mkdir()
    (layer / "tmp").chmod(0o1777)
    (layer / "etc" / "hosts").write_text("image's own\n")


def closed(layer: Path) -> None:
    usual(layer)
    (layer / "etc").chmod(0o750)
    (layer / "tmp").chmod(0o755)


def scratch(layer: Path) -> None:
    layer.chmod(0o711)


def linked(layer: Path) -> None:
    (layer / "data" / "etc").mkdir(parents=True)
    (layer / "data").chmod(0o700)
    (layer / "etc").symlink_to("/data/etc")
    (layer / "tmp").symlink_to("data/../data/tmp")


def astray(layer: Path) -> None:
    (layer / "etc").symlink_to("../../nowhere")
    (layer / "tmp").symlink_to("tmp")


def files(layer: Path) -> None:
    (layer / "etc").write_text("no directory\n")
    (layer / "tmp").write_text("no directory\n")


# image: (what it has, where its /etc is in the layer, modes of what is made)
IMAGES: dict[str, tuple[Make, str, dict[str, int]]] = {
    "usual": (usual, "etc", {"": 0o755, "etc": 0o755}),
    "closed": (closed, "etc", {"": 0o755, "etc": 0o750, "tmp": 0o1777}),
    "from scratch": (scratch, "etc", {"": 0o711, "etc": 0o755, "tmp": 0o1777}),
    "linked": (
        linked,
        "data/etc",
        {"": 0o755, "data": 0o700, "data/etc": 0o755, "tmp": 0o1777},
    ),
    "links that lead nowhere": (astray, "etc", {"": 0o755, "etc": 0o755, "tmp": 0o1777}),
    "files in their place": (files, "etc", {"": 0o755, "etc": 0o755, "tmp": 0o1777}),
}


@pytest.mark.parametrize(("make", "etc", "modes"), IMAGES.values(), ids=IMAGES)
def test_an_image(tmp_path, make, etc, modes):
    layer, upper = tmp_path / "layer", tmp_path / "upper"
    layer.mkdir(0o755)
    upper.mkdir(0o700)
    make(layer)
    furniture_of(ImageFiles((layer,)), "/").place(upper, FILES)
    for name, text in FILES.items():
        file = upper / etc / name
        assert file.read_text() == text
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    found = {"": upper, **{str(p.relative_to(upper)): p for p in upper.rglob("*") if p.is_dir()}}
    assert {name: stat.S_IMODE(p.stat().st_mode) for name, p in found.items()} == modes


WORKDIRS = {
    "there": ("/srv", {"", "etc"}),
    "missing": ("/srv/a/b", {"", "etc", "srv", "srv/a", "srv/a/b"}),
    "relative": ("srv/a", {"", "etc", "srv", "srv/a"}),
    "behind a link": ("/link/a", {"", "etc", "srv", "srv/a"}),
    "out of the root": ("/../../srv/../x", {"", "etc", "x"}),
    "a link that leads nowhere": ("/astray/a", {"", "etc", "nowhere", "nowhere/a"}),
    "a link that leads nowhere and back": ("/astray/../a", {"", "etc", "a"}),
    "a link through what is nowhere": ("/through", {"", "etc", "srv", "srv/b"}),
    "in memory": ("/dev/shm/a", {"", "etc"}),
}


@pytest.mark.parametrize(("workdir", "made"), WORKDIRS.values(), ids=WORKDIRS)
def test_a_working_directory(tmp_path, workdir, made):
    usual(tmp_path)
    (tmp_path / "srv").mkdir()
    (tmp_path / "link").symlink_to("/srv")
    (tmp_path / "astray").symlink_to("nowhere")
    (tmp_path / "through").symlink_to("not/../srv/not/.././b")
    furniture = furniture_of(ImageFiles((tmp_path,)), workdir)
    assert {each.path for each in furniture.directories} == made


FILES_IN_THE_WAY = {
    "/file": "/file",
    "/file/x": "/file",
    "/loop": "/loop",
    "/to-file/x": "/file",
    "/etc/hosts": "/etc/hosts",
    "/etc/hosts/x": "/etc/hosts",
    "/root/etc/resolv.conf": "/etc/resolv.conf",
}


@pytest.mark.parametrize(("path", "place"), FILES_IN_THE_WAY.items())
def test_a_working_directory_or_mount_that_is_a_file_is_refused_by_its_name(tmp_path, path, place):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "root").symlink_to("/")
    files = ImageFiles((tmp_path,))
    with pytest.raises(InvalidSpec, match=f"WORKDIR .*{place} is no directory"):
        furniture_of(files, path)
    with pytest.raises(InvalidSpec, match=f"cannot be mounted on: {place} is no directory"):
        furniture_of(files, "/", mounted=[path])
    furniture_of(files, "/srv/x", mounted=["/srv"])


@pytest.mark.parametrize("path", ["/proc/x", "/sys/kernel/x", "/link/y"])
def test_a_working_directory_that_the_kernel_lets_nobody_make_is_refused(tmp_path, path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "link").symlink_to("/proc/self")
    with pytest.raises(InvalidSpec, match="is the kernel's, where nothing can be made"):
        furniture_of(ImageFiles((tmp_path,)), path)


@pytest.mark.parametrize("path", ["/proc", "/sys", "/dev", "/dev/x"])
def test_a_working_directory_that_the_kernel_has_is_left_to_it(tmp_path, path):
    furniture = furniture_of(ImageFiles((tmp_path,)), path)
    assert {each.path for each in furniture.directories} == {"", "etc", "tmp"}


# Elsewhere most of these are refused when a container is made: a volume cannot lie over a file.
ODD_VOLUMES = [
    *("/", "/etc", "/etc/hosts", "/etc/hosts/x", "/etc/hostname", "/etc/resolv.conf/", "/etc/mtab"),
    *("/tmp", "/tmp/x", "/tmp/../etc/hosts", "/dev", "/dev/shm", "/dev/shm/x", "/dev/init"),
    *("/proc", "/proc/self/x", "/sys", "/sys/fs/cgroup", "/run", "/run/lock", "/var/run/app"),
    *("relative/x", "../../x", "/link/etc/hosts", "/link/tmp/x", "/data/etc/hosts"),
]


def in_place_of_the_kernel(layer: Path) -> None:
    usual(layer)
    (layer / "proc").symlink_to("/tmp")
    (layer / "sys").write_text("no directory\n")
    (layer / "dev").symlink_to("nowhere")


@pytest.mark.parametrize(
    "make", [usual, closed, scratch, linked, astray, files, in_place_of_the_kernel]
)
@pytest.mark.parametrize("volumes", [*([each] for each in ODD_VOLUMES), ODD_VOLUMES])
def test_a_volume_over_the_runtimes_own_leaves_it_as_it_is(tmp_path, make, volumes):
    layer, upper = tmp_path / "layer", tmp_path / "upper"
    layer.mkdir(0o755)
    upper.mkdir(0o755)
    make(layer)
    (layer / "link").symlink_to("/")
    furniture = furniture_of(ImageFiles((layer,)), "/", volumes)
    furniture.place(upper, FILES)
    for name, text in FILES.items():
        assert (upper / furniture.etc / name).read_text() == text
    if not (layer / "tmp").is_dir():
        assert stat.S_IMODE((upper / "tmp").lstat().st_mode) == 0o1777
    for name in KERNEL_PLACES:
        if os.path.lexists(layer / name):
            assert list((upper / name).iterdir()) == []
        else:
            assert not os.path.lexists(upper / name)


def tabled(layer: Path) -> None:
    usual(layer)
    (layer / "etc" / "mtab").symlink_to("../nowhere")


MTABS: dict[str, tuple[Make, bool]] = {
    "none": (usual, True),
    "no etc": (scratch, True),
    "etc in place of a file": (files, True),
    "etc is a link": (linked, True),
    "its own": (tabled, False),
}


@pytest.mark.parametrize(("make", "made"), MTABS.values(), ids=MTABS)
def test_a_table_of_mounts_is_where_java_looks_for_it(tmp_path, make, made):
    layer, upper = tmp_path / "layer", tmp_path / "upper"
    layer.mkdir()
    upper.mkdir()
    make(layer)
    furniture = furniture_of(ImageFiles((layer,)), "/")
    furniture.place(upper, {})
    assert os.path.lexists(upper / furniture.etc / "mtab") is made


@pytest.mark.parametrize("wanted", ["/tmp", "/tmp/work", "/etc/app", "/tmp/../tmp"])
@pytest.mark.parametrize("make", [scratch, astray, files, linked])
def test_a_volume_or_working_directory_in_tmp_leaves_tmp_open_to_all(tmp_path, make, wanted):
    make(tmp_path)
    furniture = furniture_of(ImageFiles((tmp_path,)), wanted)
    modes = {each.path: each.mode for each in furniture.directories}
    assert modes["tmp"] == 0o1777


def test_volumes_that_the_layers_lack_are_made_and_others_left_alone(tmp_path):
    usual(tmp_path)
    (tmp_path / "data" / "there").mkdir(parents=True)
    furniture = furniture_of(ImageFiles((tmp_path,)), "/", ["/data/there", "/data/not", "/data"])
    assert {each.path for each in furniture.directories} == {"", "etc", "data", "data/not"}


def test_a_directory_deep_in_many_layers_is_found_by_one_walk(tmp_path):
    """With each name looked up from the root again it takes minutes and too many looks."""
    deep = "/d" * 150
    layers = [tmp_path / str(number) for number in range(20)]
    for layer in layers:
        os.makedirs(f"{layer}{deep}")
    furniture = furniture_of(ImageFiles(layers), deep, [f"{deep}/not/there"])
    assert furniture.directories[-1].path == f"{deep}/not/there"[1:]


def test_more_directories_than_a_start_should_make_are_refused(tmp_path):
    wanted = [f"/a{number}/b" for number in range(MAX_DIRECTORIES // 2)]
    with pytest.raises(InvalidSpec, match=f"; {MAX_DIRECTORIES} are the most"):
        furniture_of(ImageFiles((tmp_path,)), "/", wanted)


def test_an_image_that_takes_too_long_to_look_at_is_refused(tmp_path):
    """Forty links of two thousand names each, in many layers."""
    layers = [tmp_path / str(number) for number in range(20)]
    for layer in layers:
        (layer / "d").mkdir(parents=True)
    for number in range(39):
        (layers[0] / f"link{number}").symlink_to("d/../" * 800 + f"link{number + 1}")
    (layers[0] / "link39").symlink_to("d")
    with pytest.raises(InvalidSpec, match=f"more than {MAX_LOOKS} looks"):
        furniture_of(ImageFiles(layers), "/link0")


@pytest.mark.parametrize("path", ["/" + "n" * 256, "/nnnn" * 700])
def test_a_working_directory_that_no_path_can_be_is_the_images_fault(tmp_path, path):
    with pytest.raises(InvalidSpec, match="longer than a path can be"):
        furniture_of(ImageFiles((tmp_path,)), path)
