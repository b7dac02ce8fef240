"""An archive is read however it is packed, and however its members are named and linked."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.containerd import decompress
from tests import oci
from tests.component.archive_house import (
    APP,
    IMAGE,
    LAYERS,
    entry,
    layout,
    load,
    old_docker,
    refusal,
)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def in_members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half]) + gzip.compress(data[half:])


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in several members": in_members,
    "gzip with zeros after it": lambda data: gzip.compress(data) + bytes(3000),
    "gzip with noise after it": lambda data: gzip.compress(data) + b"signature",
    "gzip in members with zeros between": lambda data: (
        gzip.compress(data[:9000]) + bytes(512) + gzip.compress(data[9000:]) + bytes(512)
    ),
    "zstd": zstd,
    "zstd in several frames": lambda data: zstd(data[:9000]) + zstd(data[9000:]),
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "bzip2 in several streams": lambda data: bz2.compress(data[:9000]) + bz2.compress(data[9000:]),
    "zeros after the end": lambda data: data + bytes(1 << 20),
    "noise after the end": lambda data: data + b"noise" * 1000,
}


@pytest.mark.parametrize("form", PACKED)
def test_an_archive_is_read_however_it_is_packed(tmp_path: Path, form: str) -> None:
    plain = oci.write_tar(tmp_path / "plain.tar", layout(entry(IMAGE, "app:1"))).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(PACKED[form](plain))
    assert load(path)[APP].target.digest == IMAGE.digest


@pytest.mark.parametrize("form", ["gzip", "zstd", "xz", "bzip2"])
@pytest.mark.parametrize("cut", [-20, 40])
def test_a_packed_archive_that_was_cut_short_is_named(tmp_path: Path, form: str, cut: int) -> None:
    plain = oci.write_tar(tmp_path / "plain.tar", layout(entry(IMAGE, "app:1"))).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(PACKED[form](plain)[:cut])
    assert f"is not a whole {form} file" in refusal(path)


def test_a_node_without_zstd_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(zstd(b"x"))
    monkeypatch.setattr(decompress, "ZSTD", ("no-such-program",))
    assert "apt-get install zstd" in refusal(path)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_both_formats_are_read(tmp_path: Path, form: int) -> None:
    long = "d/" * 100 + "layer.tar"
    files = old_docker(Layers=[long, json.loads(old_docker()["manifest.json"])[0]["Layers"][1]])
    files[long] = LAYERS[0].tar
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert list(load(tmp_path / "a.tar")) == [APP]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_to_links_lead_to_the_layer(tmp_path: Path, kind: bytes) -> None:
    first, second = json.loads(old_docker()["manifest.json"])[0]["Layers"]
    path = oci.write_tar(tmp_path / "a.tar", old_docker(Layers=["two/layer.tar", second]))
    with tarfile.open(path, "a") as tar:
        for name, to in (("two/layer.tar", "one/layer.tar"), ("one/layer.tar", first)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, f"../{to}" if kind == tarfile.SYMTYPE else to
            tar.addfile(link)
    assert list(load(path)) == [APP]
