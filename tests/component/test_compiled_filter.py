"""The compiled system-call filter is taken from an anchor only when it is today's profile's."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agent.core.anchor import anchor_spec
from agent.sandbox.seccomp import ANNOTATION, PROFILE, compiled

PROGRAM = bytes(range(16))


def state_of(tmp_path: Path, spec: Any, program: bytes = PROGRAM) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(spec))
    (tmp_path / "seccomp.bpf").write_bytes(program)
    return tmp_path


def spec_of(seccomp: Any = PROFILE) -> dict[str, Any]:
    return anchor_spec("/root", "/init", "/group", seccomp=seccomp, annotations={})


def test_the_program_of_todays_profile_is_taken(tmp_path: Path) -> None:
    annotations = compiled(state_of(tmp_path, spec_of()))
    assert list(annotations) == [ANNOTATION]
    assert base64.b64decode(annotations[ANNOTATION], validate=True) == PROGRAM


def test_what_another_agents_profile_became_is_left_alone(tmp_path: Path) -> None:
    older = PROFILE | {"syscalls": PROFILE["syscalls"][:-1]}
    assert compiled(state_of(tmp_path, spec_of(older))) == {}


@pytest.mark.parametrize("program", [b"", PROGRAM[:-1]])
def test_half_a_program_is_none(tmp_path: Path, program: bytes) -> None:
    assert compiled(state_of(tmp_path, spec_of(), program)) == {}


@pytest.mark.parametrize("spec", [[], {}, {"linux": None}, {"linux": {}}])
def test_a_spec_without_a_profile_is_none(tmp_path: Path, spec: Any) -> None:
    assert compiled(state_of(tmp_path, spec)) == {}


def test_a_runtime_that_keeps_no_program_leaves_it_to_the_spec(tmp_path: Path) -> None:
    assert compiled(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps(spec_of()))
    assert compiled(tmp_path) == {}
