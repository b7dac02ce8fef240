"""Archives made to hurt: headers without end, sizes that lie, paths that lead elsewhere."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agent.containerd import archive, layout, members, scratch
from agent.core import oci_image
from agent.errors import InvalidSpec, RuntimeUnavailable
from tests import oci
from tests.component.test_image_archive import read, refusal


@pytest.fixture
def small() -> oci.OciImage:
    return oci.image([oci.layer({"a": b"1"})], {"Cmd": ["/a"]})


def header(name: str, kind: bytes, size: int) -> bytes:
    """One tar header, whatever follows it."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_large_header_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    size = 256 << 20
    with path.open("wb") as file:
        file.write(header("x", kind, size))
        file.truncate(size + 4096)
    tracemalloc.start()
    try:
        refusal(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_headers_that_follow_each_other_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    one = header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4) + b"abc\0".ljust(512, b"\0")
    path.write_bytes(one * 5000 + bytes(1024))
    assert "tar archive" in refusal(path)


@pytest.mark.parametrize(
    "record",
    [
        {"GNU.sparse.map": "a,b", "GNU.sparse.size": "1"},
        {"GNU.sparse.size": "x", "GNU.sparse.numblocks": "y"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "z"},
        {"size": "-5"},
    ],
    ids=lambda record: next(iter(record)),
)
def test_extended_headers_of_nonsense_are_refused(tmp_path: Path, record: dict[str, str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("oci-layout")
        info.pax_headers = record
        info.size = 4
        tar.addfile(info, io.BytesIO(b"data"))
    path = tmp_path / "a.tar"
    path.write_bytes(buffer.getvalue())
    refusal(path)


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    raw = bytearray(header("oci-layout", tarfile.REGTYPE, 0))
    raw[124:136] = b"\xff" * 11 + b"\x00"  # base-256, negative
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(raw) + bytes(1024))
    refusal(path)


def docker_layout(path: Path, config: str, layers: list[str], files: dict[str, bytes]) -> Path:
    manifest: Any = [{"Config": config, "RepoTags": ["me:1"], "Layers": layers}]
    return oci.write_directory(path, {**files, "manifest.json": json.dumps(manifest).encode()})


def config_of(count: int) -> bytes:
    return json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * count},
        }
    ).encode()


@pytest.mark.parametrize("what", ["config", "layer"])
def test_a_layout_never_names_files_outside_of_itself(tmp_path: Path, what: str) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(config_of(1))
    names = {"config": "config.json", "layer": "layer.tar", what: str(outside)}
    path = docker_layout(
        tmp_path / "layout",
        names["config"],
        [names["layer"]],
        {"config.json": config_of(1), "layer.tar": oci.layer({"a": b"1"}).tar},
    )
    assert "secret" in refusal(path)


def test_links_among_the_directories_of_a_layout_are_not_followed(
    tmp_path: Path, small: oci.OciImage
) -> None:
    path = oci.write_directory(tmp_path / "layout", oci.layout(small))
    (path / "blobs").rename(tmp_path / "elsewhere")
    (path / "blobs").symlink_to(tmp_path / "elsewhere")
    assert "blobs" in refusal(path)


def test_a_docker_manifest_that_repeats_a_layer_is_not_read_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = oci_image.MAX_LAYERS + 1
    path = docker_layout(
        tmp_path / "layout",
        "config.json",
        ["layer.tar"] * count,
        {"config.json": config_of(count), "layer.tar": oci.layer({"a": b"1"}).tar},
    )
    files = archive.open_files(path, tmp_path)
    opened = []
    pieces = files.pieces

    def noted(name):
        opened.append(name)
        return pieces(name)

    monkeypatch.setattr(files, "pieces", noted)
    with pytest.raises(InvalidSpec, match="layers"):
        layout.read_layouts(files)
    assert opened.count("layer.tar") == 0


def test_layers_beyond_the_largest_image_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_BYTES", 15_000)
    files = {f"{n}.tar": oci.layer({"a": b"1"}).tar for n in range(2)}
    path = docker_layout(
        tmp_path / "layout", "config.json", list(files), {"config.json": config_of(2), **files}
    )
    assert "15000 bytes" in refusal(path)


def test_layers_of_a_docker_archive_are_read_once_each(tmp_path: Path) -> None:
    path = docker_layout(
        tmp_path / "layout",
        "config.json",
        ["layer.tar"] * 3,
        {"config.json": config_of(3), "layer.tar": oci.layer({"a": b"1"}).tar},
    )
    found = read(path)
    assert len(found.manifest.layers) == 3
    assert len(found.blobs) == 3


def test_no_room_for_unpacking_names_the_place_without_room(
    tmp_path: Path, small: oci.OciImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar.gz"
    plain = oci.write_tar(tmp_path / "a.tar", oci.layout(small))
    path.write_bytes(gzip.compress(plain.read_bytes()))
    monkeypatch.setattr(scratch, "RESERVE_BYTES", 1 << 62)
    place = tmp_path / "scratch"
    place.mkdir()
    with pytest.raises(RuntimeUnavailable, match=f"in {place}.*must stay so"):
        archive.open_files(path, place)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("holds", [b"", b"x"], ids=["empty", "a byte each"])
def test_members_of_next_to_nothing_are_not_read_for_ever(
    tmp_path: Path, kind: str, holds: bytes
) -> None:
    pack: Any = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[kind]
    path = tmp_path / "a.tar"
    path.write_bytes(pack(holds) * (members.MAX_EMPTY + 50))
    with pytest.raises(InvalidSpec, match=f"whole {kind} file .* next to nothing"):
        archive.open_files(path, tmp_path)


def test_many_members_that_hold_something_are_read(
    tmp_path: Path, small: oci.OciImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "MAX_EMPTY", 3)
    plain = oci.write_tar(tmp_path / "a.tar", oci.layout(small)).read_bytes()
    path = tmp_path / "a.tar.gz"
    blocks = [plain[at : at + 512] for at in range(0, len(plain), 512)]
    path.write_bytes(b"".join(map(gzip.compress, blocks)))
    assert len(blocks) > 10
    archive.open_files(path, tmp_path).close()
