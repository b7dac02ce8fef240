"""Archives and layouts on disk: what is made out of them before containerd sees anything."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.containerd import archive
from agent.containerd.layout import ImageLayout, read_layouts
from agent.errors import InvalidSpec
from tests import oci

ARM64 = {"os": "linux", "architecture": "arm64"}
AMD64 = {"os": "linux", "architecture": "amd64"}


@pytest.fixture
def small() -> oci.OciImage:
    return oci.image([oci.layer({"a": b"1"}), oci.layer({"b": b"2"})], {"Cmd": ["/a"]})


def read(path: Path) -> ImageLayout:
    files = archive.open_files(path, path.parent)
    try:
        found = read_layouts(files)
        for failure in found.refused.values():
            raise failure
        (layout,) = found.images
        for blob in layout.blobs:
            assert oci.digest(b"".join(blob.pieces(files))) == blob.descriptor.digest
        return layout
    finally:
        files.close()


def refusal(path: Path) -> str:
    with pytest.raises(InvalidSpec) as caught:
        read(path)
    assert str(path) in caught.value.message
    return caught.value.message


def test_blobs_come_with_the_manifest_last(tmp_path: Path, small: oci.OciImage) -> None:
    layout = read(oci.write_tar(tmp_path / "a.tar", oci.layout(small, "me/app:1")))
    assert layout.target.digest == small.digest
    assert layout.blobs[-1].descriptor == layout.target
    assert len(layout.blobs) == 4
    assert layout.names == ("me/app:1",)


def test_members_may_begin_with_a_dot(tmp_path: Path, small: oci.OciImage) -> None:
    files = {f"./{name}": data for name, data in oci.layout(small).items()}
    assert read(oci.write_tar(tmp_path / "a.tar", files)).target.digest == small.digest


def test_an_index_inside_the_index_is_followed(tmp_path: Path, small: oci.OciImage) -> None:
    arm = oci.image([oci.layer({"c": b"3"})], arch="arm64")
    inner = oci.index([(arm, ARM64), (small, AMD64)], attestation=True)
    layout = read(oci.write_directory(tmp_path / "layout", oci.layout(inner)))
    assert layout.target.digest == small.digest


def test_indexes_nested_without_end_are_refused(tmp_path: Path, small: oci.OciImage) -> None:
    nested = small
    for _ in range(6):
        nested = oci.index([(nested, AMD64)])
    text = refusal(oci.write_tar(tmp_path / "a.tar", oci.layout(nested)))
    assert "nested more than" in text


def test_the_same_layer_twice_is_stored_once(tmp_path: Path) -> None:
    layer = oci.layer({"a": b"1"})
    layout = read(oci.write_tar(tmp_path / "a.tar", oci.layout(oci.image([layer, layer]))))
    assert len(layout.manifest.layers) == 2
    assert len(layout.blobs) == 3


def test_docker_save_gets_a_manifest_of_its_own(tmp_path: Path) -> None:
    layers = [oci.layer({"a": b"1"}), oci.layer({"b": b"2"})]
    made = oci.image(layers, docker=True)
    layout = read(oci.write_tar(tmp_path / "a.tar", oci.docker_save(made, layers, "app:1")))
    assert [layer.digest for layer in layout.manifest.layers] == [each.diff_id for each in layers]
    assert layout.target.media_type == oci.DOCKER_MANIFEST
    assert json.loads(layout.blobs[-1].data)["config"]["digest"] == layout.manifest.config.digest
    assert layout.names == ("app:1",)


def test_docker_save_may_link_a_layer_to_another(tmp_path: Path) -> None:
    layer = oci.layer({"a": b"1"})
    made = oci.image([layer, layer], docker=True)
    files = oci.docker_save(made, [layer], "app:1")
    entry = json.loads(files.pop("manifest.json"))[0]
    first = entry["Layers"][0]
    entry["Layers"] = [first, "other/layer.tar"]
    path = oci.write_tar(
        tmp_path / "a.tar", files | {"manifest.json": json.dumps([entry]).encode()}
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("other/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, f"../{first}"
        tar.addfile(link)
    layout = read(path)
    assert [each.digest for each in layout.manifest.layers] == [layer.diff_id] * 2


def break_version(files: dict[str, bytes]) -> None:
    files["oci-layout"] = b'{"imageLayoutVersion":"2.0.0"}'


def break_index(files: dict[str, bytes]) -> None:
    files["index.json"] = b'{"manifests":{}}'


def lose_index(files: dict[str, bytes]) -> None:
    del files["index.json"]


def shorten_layer(files: dict[str, bytes]) -> None:
    name = next(name for name, data in files.items() if data.startswith(b"\x1f\x8b"))
    files[name] = files[name][:-1]


def forge_manifest(files: dict[str, bytes]) -> None:
    name = next(name for name, data in files.items() if b'"layers":[' in data)
    files[name] = files[name].replace(b'"schemaVersion":2', b'"schemaVersion":3')


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_version, "not of version 1.0.0"),
        (break_index, "no list of manifests"),
        (lose_index, "has no file index.json"),
        (shorten_layer, "bytes, its manifest says"),
        (forge_manifest, "is damaged"),
    ],
)
def test_broken_layouts_are_named(
    tmp_path: Path,
    small: oci.OciImage,
    change: Callable[[dict[str, bytes]], None],
    words: str,
) -> None:
    files = oci.layout(small)
    change(files)
    assert words in refusal(oci.write_tar(tmp_path / "a.tar", files))


def test_links_out_of_a_directory_are_not_followed(tmp_path: Path, small: oci.OciImage) -> None:
    path = oci.write_directory(tmp_path / "layout", oci.layout(small))
    secret = tmp_path / "secret"
    (path / "index.json").rename(secret)
    (path / "index.json").symlink_to(secret)
    assert "has no file index.json" in refusal(path)


def test_an_archive_of_too_many_members_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    path = oci.write_tar(tmp_path / "a.tar", {f"f{n}": b"" for n in range(5)})
    assert "more than 3 members" in refusal(path)


def test_a_gzip_bomb_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    path = oci.write_tar(tmp_path / "a.tgz", {"zeros": bytes(4 << 20)}, compress=True)
    assert "when decompressed" in refusal(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tgz"]


def test_an_archive_of_directories_only_is_no_image(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("dir")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    assert "without files" in refusal(tmp_path / "a.tar")
