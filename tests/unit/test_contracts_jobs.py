"""An event that Linux would not take as environment is refused before anything starts."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from agent.contracts.base import Contract, NodeFacts
from agent.contracts.bind import bind
from agent.contracts.jobs import event_room
from agent.errors import FunctionFailed, InvalidSpec
from agent.model.failure import FailureKind
from agent.model.limits import MAX_EXEC_BYTES, MAX_STRING_BYTES
from agent.model.records import FunctionVersion, ImageFacts
from agent.model.spec_parse import parse_spec

IMAGE = ImageFacts("i", "sha256:0", "sha256:1", 1, cmd=("/bin/true",), env=("PATH=/bin",))
JOBS = {"fc2": "FC_CUSTOM_CONTAINER_EVENT", "scf-job": "SCF_CUSTOM_CONTAINER_EVENT"}


def job(name: str, image: ImageFacts = IMAGE, **fields: object) -> Contract:
    given = {"name": "f", "image": "kindling.local/f:1", "contract": name, "kind": "job"}
    spec = parse_spec({**given, **fields})
    return bind(FunctionVersion("f", 1, spec, image, "Ready", 0), NodeFacts())


@pytest.mark.parametrize("name", JOBS)
def test_the_largest_event_fits_and_one_byte_more_does_not(name: str) -> None:
    contract = job(name)
    room = event_room(JOBS[name])
    assert contract.limits.request_bytes == room
    environment = contract.job_input(b"x" * room, "R").environment
    assert len(f"{JOBS[name]}={environment[JOBS[name]]}") + 1 == MAX_STRING_BYTES
    # The kernel agrees: it runs with the largest event and not with a larger one.
    subprocess.run(["/bin/true"], env=environment, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["/bin/true"], env={JOBS[name]: "x" * (room + 1)}, check=True)
    with pytest.raises(FunctionFailed) as refused:
        contract.job_input(b"x" * (room + 1), "R")
    assert refused.value.kind is FailureKind.REQUEST_TOO_LARGE


@pytest.mark.parametrize("name", JOBS)
def test_environment_and_arguments_together_are_bounded(name: str) -> None:
    args = tuple("a" * 131_000 for _ in range(15))
    contract = job(name, replace(IMAGE, cmd=("/bin/true", *args)))
    contract.job_input(b"x", "R")
    with pytest.raises(FunctionFailed) as refused:
        contract.job_input(b"x" * 131_000 + b"y", "R")
    assert refused.value.kind is FailureKind.REQUEST_TOO_LARGE
    assert str(MAX_EXEC_BYTES) in refused.value.message


def test_the_function_s_own_arguments_replace_the_image_s() -> None:
    args = tuple("a" * 130_000 for _ in range(16))
    contract = job("fc2", replace(IMAGE, cmd=("/bin/true", *args)), command=["/bin/true"])
    assert contract.job_input(b"x" * 1000, "R").environment


@pytest.mark.parametrize("event", [b"a\0b", b"\xff", b"\xed\xa0\x80"])
@pytest.mark.parametrize("name", JOBS)
def test_an_event_no_environment_can_carry_is_refused(name: str, event: bytes) -> None:
    with pytest.raises(InvalidSpec, match="event"):
        job(name).job_input(event, "R")


def test_an_argument_of_the_image_that_linux_would_not_take_is_named() -> None:
    contract = job("scf-job", replace(IMAGE, cmd=("/bin/true", "a" * MAX_STRING_BYTES)))
    with pytest.raises(InvalidSpec, match="argument 1"):
        contract.job_input(b"x", "R")
