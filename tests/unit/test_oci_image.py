"""Manifests, indexes and configs: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import bounded_json, oci_image
from agent.errors import InvalidSpec

HEX = "a" * 64
WHERE = "app:1"


def entry(platform: str = "", media_type: str = oci_image.OCI_MANIFEST, **more: Any) -> Any:
    said: dict[str, Any] = {"mediaType": media_type, "digest": f"sha256:{HEX}", "size": 7}
    if platform:
        keys = ("os", "architecture", "variant")
        said["platform"] = dict(zip(keys, platform.split("/"), strict=False))
    return said | more


def index(*entries: Any) -> tuple[oci_image.Descriptor, ...]:
    return oci_image.parse_index(json.dumps({"manifests": entries}).encode(), WHERE)


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


def config(**more: Any) -> bytes:
    document = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest("1")]},
    }
    return json.dumps(document | more).encode()


def manifest(**more: Any) -> bytes:
    layer = entry(media_type="application/vnd.oci.image.layer.v1.tar+gzip", size=90)
    document = {"config": entry(media_type=oci_image.OCI_CONFIG, size=10), "layers": [layer]}
    return json.dumps(document | more).encode()


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InvalidSpec) as caught:
        call(*arguments)
    return caught.value.message


def test_amd64_is_chosen_among_others() -> None:
    arm = entry("linux/arm64", digest=digest("b"))
    windows = entry("windows/amd64", digest=digest("c"))
    chosen = oci_image.choose(index(arm, windows, entry("linux/amd64")), WHERE)
    assert chosen.digest == f"sha256:{HEX}"


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/amd64/v1"])
def test_the_baseline_runs_everywhere(platform: str) -> None:
    assert oci_image.choose(index(entry(platform)), WHERE).platform == platform


@pytest.mark.parametrize(
    "platform",
    ["linux/amd64/v3", "linux/arm64", "windows/amd64", "linux/amd64p32", "freebsd/amd64"],
)
def test_other_platforms_are_named_in_the_refusal(platform: str) -> None:
    text = refusal(oci_image.choose, index(entry(platform)), WHERE)
    assert platform in text
    assert WHERE in text


def test_attestations_are_never_chosen() -> None:
    marked = {"vnd.docker.reference.type": "attestation-manifest"}
    entries = index(entry("unknown/unknown"), entry(annotations=marked))
    assert all(each.is_attestation for each in entries)
    assert "it offers nothing" in refusal(oci_image.choose, entries, WHERE)


def test_an_entry_without_platform_is_followed_when_it_is_the_only_one() -> None:
    assert oci_image.choose(index(entry(), entry("unknown/unknown")), WHERE).platform == ""


def test_several_entries_without_platform_are_named() -> None:
    names = [{"org.opencontainers.image.ref.name": name} for name in ("one", "two")]
    entries = [
        entry(digest=digest(letter), annotations=name)
        for letter, name in zip("bc", names, strict=True)
    ]
    assert "(one, two)" in refusal(oci_image.choose, index(*entries), WHERE)


def test_one_image_under_two_names_is_one_image() -> None:
    entries = index(entry(annotations={"a": "1"}), entry(annotations={"a": "2"}))
    assert oci_image.choose(entries, WHERE).digest == f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("media_type", "words"),
    [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1 is obsolete"),
        ("application/vnd.oci.artifact.manifest.v1+json", "artifact"),
        ("", "no media type"),
    ],
)
def test_other_formats_are_refused_by_name(media_type: str, words: str) -> None:
    found = oci_image.Descriptor(media_type, digest("1"), 1)
    assert words in refusal(oci_image.check_runnable, found, WHERE)


def test_a_manifest_gives_its_sizes() -> None:
    parsed = oci_image.parse_manifest(manifest(), oci_image.OCI_MANIFEST, WHERE)
    assert parsed.compressed_bytes == 100
    assert len(parsed.layers) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": []}, "no layers"),
        ({"layers": [entry()] * 501}, "501 layers"),
        ({"layers": [entry(media_type="application/wasm")]}, "application/wasm"),
        ({"config": entry(media_type="application/vnd.cncf.helm.config.v1+json")}, "helm"),
        ({"config": None}, "config is not a descriptor"),
        ({"layers": [entry(digest="sha512:00")]}, "sha512:00"),
        ({"layers": [entry(size=-1)]}, "size -1"),
        ({"layers": [entry(size=True)]}, "size True"),
    ],
)
def test_manifests_that_cannot_run_are_refused(change: Any, words: str) -> None:
    text = refusal(oci_image.parse_manifest, manifest(**change), oci_image.OCI_MANIFEST, WHERE)
    assert words in text


def test_a_config_says_how_to_run() -> None:
    said = {
        "Entrypoint": ["/init"],
        "Cmd": ["a", "b"],
        "Env": ["A=1"],
        "WorkingDir": "/srv",
        "User": "app",
        "StopSignal": "SIGINT",
        "ExposedPorts": {"9000/tcp": {}},
        "Labels": {"k": "v"},
    }
    parsed = oci_image.parse_config(config(config=said), WHERE)
    assert parsed.entrypoint == ("/init",)
    assert parsed.cmd == ("a", "b")
    assert parsed.env == ("A=1",)
    assert (parsed.workdir, parsed.user, parsed.stop_signal) == ("/srv", "app", "SIGINT")
    assert parsed.exposed_ports == ("9000/tcp",)
    assert parsed.labels == {"k": "v"}


def test_nulls_mean_the_default() -> None:
    nulls = dict.fromkeys(("Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Labels"))
    for section in (nulls, None, {}):
        parsed = oci_image.parse_config(config(config=section), WHERE)
        assert parsed.entrypoint == parsed.cmd == parsed.env == ()
        assert (parsed.workdir, parsed.user, parsed.stop_signal) == ("/", "", "SIGTERM")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "arm64"}, "is for linux/arm64; this node runs linux/amd64 only"),
        ({"architecture": "arm", "variant": "v7"}, "linux/arm/v7"),
        ({"os": "windows"}, "windows/amd64"),
        ({"rootfs": {}}, "lists no layers"),
        ({"rootfs": None}, "lists no layers"),
        ({"rootfs": {"diff_ids": ["md5:1"]}}, "md5:1"),
        ({"config": {"Cmd": 5}}, "Cmd is not a list"),
        ({"config": {"Env": "A=1"}}, "Env is not a list"),
        ({"config": {"Env": [1]}}, "Env is not a list"),
        ({"config": {"User": 0, "WorkingDir": 5}}, "WorkingDir is not a string"),
        ({"config": ["sh"]}, "not an object"),
    ],
)
def test_configs_that_cannot_run_are_refused(change: Any, words: str) -> None:
    assert words in refusal(oci_image.parse_config, config(**change), WHERE)


@pytest.mark.parametrize("text", ["a\0b", "\0env=\0", "\ud800"])
@pytest.mark.parametrize("key", ["Entrypoint", "Cmd", "Env", "WorkingDir", "User", "StopSignal"])
def test_text_that_no_program_can_get_is_refused(key: str, text: str) -> None:
    section = {key: [text] if key in ("Entrypoint", "Cmd", "Env") else text}
    assert key in refusal(oci_image.parse_config, config(config=section), WHERE)


def test_layers_are_counted() -> None:
    parsed = oci_image.parse_manifest(manifest(), oci_image.OCI_MANIFEST, WHERE)
    two = {"rootfs": {"diff_ids": [digest("1"), digest("2")]}}
    said = oci_image.parse_config(config(**two), WHERE)
    assert "1 layers but its config lists 2" in refusal(oci_image.check_layers, parsed, said, WHERE)


def test_chain_ids_follow_the_specification() -> None:
    """The values were computed with `printf '%s %s' … | sha256sum`."""
    one, two, three = (digest(letter) for letter in "123")
    assert oci_image.chain_id([one]) == one
    second = "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
    assert oci_image.chain_ids([one, two, three])[:2] == [one, second]
    assert oci_image.chain_id([one, two]) == second
    assert oci_image.chain_ids([one, two, three])[-1] == oci_image.chain_id([one, two, three])
    assert "no layers" in refusal(oci_image.chain_id, [])


def test_the_shape_decides_where_the_type_is_missing() -> None:
    assert oci_image.sniff_type(manifest(), "", WHERE) == oci_image.OCI_MANIFEST
    assert oci_image.sniff_type(b'{"manifests":[]}', "", WHERE) == oci_image.OCI_INDEX
    written = json.dumps({"mediaType": oci_image.DOCKER_MANIFEST}).encode()
    assert oci_image.sniff_type(written, "text/plain", WHERE) == oci_image.DOCKER_MANIFEST
    assert oci_image.sniff_type(b"{}", "text/plain", WHERE) == "text/plain"


PARSERS = (
    lambda data: oci_image.choose(oci_image.parse_index(data, WHERE), WHERE),
    lambda data: oci_image.parse_manifest(data, oci_image.OCI_MANIFEST, WHERE),
    lambda data: oci_image.parse_config(data, WHERE),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "manifests",
                    "config",
                    "layers",
                    "rootfs",
                    "diff_ids",
                    "digest",
                    "size",
                    "platform",
                    "os",
                    "architecture",
                    "annotations",
                    "mediaType",
                    "Cmd",
                    "Env",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_input_is_parsed_or_refused(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except InvalidSpec as failure:
            assert WHERE in failure.message  # noqa: PT017 - parsing may succeed, too


def test_oversized_json_is_not_parsed() -> None:
    data = b" " * (oci_image.MAX_JSON_BYTES + 1)
    assert "larger than" in refusal(oci_image.parse_config, data, WHERE)


# -- what is made to take long

MANY = bounded_json.MAX_VALUES
HOSTILE = {
    "a million keys": b"{%s}" % b",".join(b'"%x":1' % n for n in range(300_000)),
    "nested": b"[" * (2 << 20) + b"]" * (2 << 20),
    "nested and many": b"[%s]" % b",".join([b"[" * 900 + b"]" * 900] * 2000),
    "lists": b"[%s]" % b",".join([b"[]"] * 1_000_000),
    "objects": b"[%s]" % b",".join([b'{"a":1}'] * 500_000),
    "numbers": b"[%s]" % b",".join([b"1"] * 2_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_documents_that_would_keep_the_parser_busy_are_not_parsed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = HOSTILE[name]
    assert len(data) <= oci_image.MAX_JSON_BYTES
    parsed: list[bytes] = []
    monkeypatch.setattr(json, "loads", parsed.append)
    said = refusal(oci_image.parse_config, data, WHERE)
    assert f"is not JSON (it has more than {MANY} values)" in said
    assert oci_image.artifact_types(data) == set()
    assert parsed == []


def test_the_largest_index_and_labels_of_json_are_parsed() -> None:
    said = {f"org.example.{n}": "a, b [c] {d}" for n in range(5)}
    found = index(*(entry("linux/amd64/v1", annotations=said) for _ in range(1000)))
    assert len(found) == 1000
    label = json.dumps([{"id": str(n), "value": [n, n]} for n in range(8000)])
    labels = {"devcontainer.metadata": label}
    assert oci_image.parse_config(config(config={"Labels": labels}), WHERE).labels == labels


@pytest.mark.parametrize(
    "section",
    [{"WorkingDir": "/a" * 2048}, {"Volumes": {"a/" * 1_000_000: {}}}],
    ids=["WorkingDir", "Volumes"],
)
def test_a_path_longer_than_any_is_refused(section: Any) -> None:
    said = refusal(oci_image.parse_config, config(config=section), WHERE)
    assert "longer than any path may be (4096)" in said


def test_what_is_wrong_is_not_repeated_at_length() -> None:
    long = "x" * 1_000_000
    said = refusal(oci_image.parse_config, config(rootfs={"diff_ids": [long]}), WHERE)
    assert len(said) < 2000
