"""What is laid into a writable layer, for every odd thing an image may have in its place."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.sandbox.furniture import furniture_of
from agent.sandbox.image_files import ImageFiles

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
    "a file": ("/file/x", {"", "etc", "file", "file/x"}),
}


@pytest.mark.parametrize(("workdir", "made"), WORKDIRS.values(), ids=WORKDIRS)
def test_a_working_directory(tmp_path, workdir, made):
    usual(tmp_path)
    (tmp_path / "srv").mkdir()
    (tmp_path / "link").symlink_to("/srv")
    (tmp_path / "file").touch()
    furniture = furniture_of(ImageFiles((tmp_path,)), workdir)
    assert {each.path for each in furniture.directories} == made
