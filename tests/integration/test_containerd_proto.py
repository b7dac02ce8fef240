"""Our subset of containerd's API says the same as the upstream files that Debian ships.

Everything in `proto/containerd` must stand upstream under the same full name, with the same field
numbers, names, types and labels. Upstream may have more: that is what makes ours a subset.
"""

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from proto.generate import SOURCE, describe, sources

pytestmark = pytest.mark.integration

GOCODE = Path("/usr/lib/kindling/dev/usr/share/gocode/src")
API = GOCODE / "github.com/containerd/containerd/api"

Facts = dict[str, str]


def _facts(files: list[FileDescriptorProto]) -> Facts:
    found: Facts = {}
    for file in files:
        for message in file.message_type:
            found |= _message_facts(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            found |= _enum_facts(f"{file.package}.{enum.name}", enum)
        for service in file.service:
            for call in service.method:
                key = f"{file.package}.{service.name}/{call.name}"
                found[key] = (
                    f"{call.client_streaming} {call.input_type}"
                    f" -> {call.server_streaming} {call.output_type}"
                )
    return found


def _message_facts(name: str, message: DescriptorProto) -> Facts:
    found = {name: "message"}
    for field in message.field:
        found[f"{name}/{field.number}"] = _field_fact(field)
    for nested in message.nested_type:
        found |= _message_facts(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        found |= _enum_facts(f"{name}.{enum.name}", enum)
    return found


def _field_fact(field: FieldDescriptorProto) -> str:
    return f"{field.label} {field.type} {field.type_name} {field.name}"


def _enum_facts(name: str, enum: EnumDescriptorProto) -> Facts:
    return {f"{name}/{value.number}": value.name for value in enum.value}


@pytest.fixture(scope="module")
def upstream() -> Facts:
    names = [str(path.relative_to(GOCODE)) for path in sorted(API.rglob("*.proto"))]
    assert names, f"no .proto files below {API}: run 'setup/host.sh --dev' as root"
    return _facts([file for file in describe(GOCODE, names).file if file.name in names])


def _ours() -> list[FileDescriptorProto]:
    names = [name for name in sources() if name.startswith("containerd/")]
    return [file for file in describe(SOURCE, names).file if file.name in names]


def _differences(ours: Facts, theirs: Facts) -> list[str]:
    return [
        f"{key}: ours is '{ours[key]}', upstream has '{theirs.get(key, 'nothing')}'"
        for key in sorted(ours)
        if theirs.get(key) != ours[key]
    ]


def test_our_subset_says_what_upstream_says(upstream: Facts) -> None:
    ours = _facts(_ours())
    assert len(ours) > 300
    assert _differences(ours, upstream) == []


@pytest.mark.parametrize("attribute", ["name", "number", "type", "label"])
def test_any_differing_field_is_noticed(upstream: Facts, attribute: str) -> None:
    files = _ours()
    (tasks,) = [file for file in files if file.package == "containerd.services.tasks.v1"]
    (kill,) = [one for one in tasks.message_type if one.name == "KillRequest"]
    (signal,) = [field for field in kill.field if field.name == "signal"]
    wrong: dict[str, str | int] = {
        "name": "signo",
        "number": 9,
        "type": FieldDescriptorProto.TYPE_INT32,
        "label": FieldDescriptorProto.LABEL_REPEATED,
    }
    setattr(signal, attribute, wrong[attribute])
    (difference,) = _differences(_facts(files), upstream)
    assert difference.startswith("containerd.services.tasks.v1.KillRequest/")
