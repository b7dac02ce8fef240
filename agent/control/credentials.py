"""Registry credentials as they come over the wire: checked here, passed on, never given back."""

from __future__ import annotations

import time

from google.protobuf.json_format import MessageToDict

from agent._pb.worker.v1 import worker_pb2 as pb
from agent.control.convert import unknown_fields
from agent.errors import InvalidSpec, Problem
from agent.model.image_ref import parse_image_ref
from agent.model.registry_rules import registry_problems
from agent.model.spec import RegistrySpec


def registry_from_proto(message: pb.Registry, field: str = "registry") -> RegistrySpec:
    """Return one call's registry table; raises InvalidSpec with all problems at once."""
    unknown = [
        Problem(f"{field}.{where}", "is a field this agent does not know: leave it out")
        for where in unknown_fields(message)
    ]
    registry = RegistrySpec(**MessageToDict(message, preserving_proto_field_name=True))
    problems = [*unknown, *registry_problems(registry, field)]
    if problems:
        raise InvalidSpec(problems)
    return registry


def given_credentials(
    request: pb.SetCredentialsRequest,
) -> tuple[str, RegistrySpec, float | None]:
    """Return host, table (empty: forget) and end (wall time) of a request for a registry."""
    given = request.registry
    registry = RegistrySpec(
        username=given.username, password=given.password, identity_token=given.identity_token
    )
    problems = list(registry_problems(registry))
    if given.username and not (given.password or given.identity_token):
        problems.append(Problem("registry.password", "is missing beside the username"))
    try:
        host = parse_image_ref(f"{given.host}/a").host if given.host else ""
    except ValueError:
        host = ""
    if not host or "/" in given.host:
        problems.append(Problem("registry.host", "must be a registry's host, with :port if needed"))
    until = None
    if request.HasField("expires_at"):
        until = request.expires_at.ToNanoseconds() / 1e9
        if until <= time.time():
            problems.append(Problem("expires_at", "has passed already"))
    if problems:
        raise InvalidSpec(problems)
    return host, registry, until
