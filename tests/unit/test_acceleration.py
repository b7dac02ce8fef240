"""Which way an image is made ready, and what is said of it."""

from __future__ import annotations

import json

import pytest

from agent.config import ENGINES, NodeConfig
from agent.containerd.lazy import LazySource, is_lost
from agent.core.acceleration import advice, worth_asking
from agent.core.oci_image import artifact_types
from agent.linux.process import Identity
from agent.rootless.settings import house_of


@pytest.mark.parametrize(
    ("asked", "size", "worth"),
    [
        ("auto", 99, False),
        ("auto", 100, True),
        ("lazy", 1, True),
        ("eager", 1000, False),
    ],
)
def test_an_index_matters_for_large_images_and_for_those_who_insist(asked, size, worth):
    assert worth_asking(asked, size, 100) is worth


@pytest.mark.parametrize(
    ("asked", "engines", "indexed", "said"),
    [
        ("auto", False, False, ""),
        ("auto", True, False, ""),
        ("eager", True, False, ""),
        ("lazy", True, True, ""),
        ("lazy", False, False, "no engine for lazy images is installed"),
        ("lazy", True, False, "run 'kindling image accelerate x:1' to make one"),
    ],
)
def test_only_who_asked_for_lazy_hears_that_it_is_not(asked, engines, indexed, said):
    text = advice(asked, "x:1", engines=engines, indexed=indexed)
    assert said in text
    assert bool(text) == bool(said)


@pytest.mark.parametrize(
    ("document", "types"),
    [
        ({"manifests": [{"artifactType": "a"}, {"artifactType": "b"}, {}]}, {"a", "b"}),
        ({"manifests": [None, 3, {"artifactType": 4}]}, set()),
        ({"manifests": {"artifactType": "a"}}, set()),
        ({"manifests": None}, set()),
        ({}, set()),
        ([], set()),
        ("a", set()),
    ],
)
def test_referrers_are_told_by_their_artifact_type(document, types):
    assert artifact_types(json.dumps(document).encode()) == types


def test_what_is_no_json_has_no_referrers():
    assert artifact_types(b"404 page not found") == set()


def test_a_source_names_one_process_for_good():
    source = LazySource("soci", Identity(7, 99))
    assert LazySource.parse(str(source)) == source
    assert LazySource.parse("") is None


def test_files_are_lost_when_the_very_process_is_gone():
    import os

    own = Identity.of(os.getpid())
    assert not is_lost("")
    assert not is_lost(str(LazySource("soci", own)))
    assert is_lost(str(LazySource("soci", Identity(own.pid, own.start - 1))))


def test_an_engine_is_there_when_its_program_is_found(tmp_path):
    """A configuration entry more is an engine more."""
    config = json.loads(NodeConfig.model_validate({"paths": {"lib": tmp_path}}).model_dump_json())
    config["lazy"]["engines"].append({**config["lazy"]["engines"][0], "name": "third"})
    config["lazy"]["engines"][2] |= {"binary": "third-grpc", "place": ""}
    assert [engine.name for engine in ENGINES] == ["soci", "stargz"]
    program = tmp_path / "bin" / "third-grpc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    found = {engine.name: engine.program for engine in house_of(config).engines}
    assert found["third"] == str(program)
    config["lazy"]["engines"][2]["place"] = str(tmp_path / "missing")
    assert "third" not in {engine.name for engine in house_of(config).engines}
