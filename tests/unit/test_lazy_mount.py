"""What a lazy engine is told of an image's layers."""

from __future__ import annotations

import pytest

from agent.containerd.lazy_mount import CRI, LABEL_CHARS, REMOTE, layer_labels
from agent.core.oci_image import Descriptor

MANIFEST = "sha256:" + "f" * 64


def layers(count: int) -> list[Descriptor]:
    return [Descriptor("application/x", f"sha256:{n:064}", 1000 + n) for n in range(count)]


def test_a_layer_is_told_with_its_size_and_those_above_it() -> None:
    told = layer_labels("r.example/x:1", MANIFEST, layers(3)[1:], "soci")
    digests = [layer.digest for layer in layers(3)]
    assert told == {
        CRI + "image-ref": "r.example/x:1",
        CRI + "manifest-digest": MANIFEST,
        CRI + "layer-digest": digests[1],
        CRI + "image-layers": ",".join(digests[1:]),
        REMOTE + "soci.size": "1001",
        REMOTE + "image.layers.size": "1001,1002",
    }


@pytest.mark.parametrize("count", [1, 55, 56, 57, 127])
def test_as_many_layers_are_told_as_labels_hold_and_each_with_its_size(count: int) -> None:
    told = layer_labels("r.example/x:1", MANIFEST, layers(count), "soci")
    digests = told[CRI + "image-layers"].split(",")
    assert len(digests) == min(count, 56)
    assert len(told[REMOTE + "image.layers.size"].split(",")) == len(digests)
    assert all(len(key) + len(value) <= LABEL_CHARS for key, value in told.items())
