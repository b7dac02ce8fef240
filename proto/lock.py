"""Hold `worker.v1` compatible: only additions to what was released are allowed.

The lock, `worker/v1/worker.lock.json`, lists every message field (number, name, type, label, JSON
name), enum value and call of the service. `python -m proto.lock` compares and says what broke or
was added; `--accept` takes additions into the lock, and still refuses everything else.
"""

import argparse
import json
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from proto.generate import SOURCE, describe

FILE = "worker/v1/worker.proto"
LOCK = SOURCE / "worker" / "v1" / "worker.lock.json"

Facts = dict[str, str]
"""What stands on the wire, flat: `worker.v1.Call/1` to `id string`."""


def facts(file: FileDescriptorProto) -> Facts:
    """Return every fact of a file that a client may rely on, by the name it must keep."""
    found: Facts = {}
    for message in file.message_type:
        found |= _message_facts(f"{file.package}.{message.name}", message)
    for enum in file.enum_type:
        found |= _enum_facts(f"{file.package}.{enum.name}", enum)
    for service in file.service:
        for call in service.method:
            request = ("stream " if call.client_streaming else "") + call.input_type
            reply = ("stream " if call.server_streaming else "") + call.output_type
            found[f"{file.package}.{service.name}/{call.name}"] = f"{request} -> {reply}"
    return found


def broken(released: Facts, present: Facts) -> list[str]:
    """Return one sentence for every released fact that is gone or different now."""
    sentences = []
    for key, was in sorted(released.items()):
        now = present.get(key)
        if now is None:
            sentences.append(f"{key}: '{was}' was released and is gone")
        elif now != was:
            sentences.append(f"{key}: '{was}' was released and is now '{now}'")
    return sentences


def added(released: Facts, present: Facts) -> list[str]:
    """Return the facts that the lock does not hold yet."""
    return sorted(set(present) - set(released))


def present_facts() -> Facts:
    """Compile worker.proto and return its facts."""
    (file,) = [file for file in describe(SOURCE, [FILE]).file if file.name == FILE]
    return facts(file)


def released_facts() -> Facts:
    """Read the lock; empty when there is none yet."""
    if not LOCK.exists():
        return {}
    found: Facts = json.loads(LOCK.read_text("utf-8"))
    return found


def _message_facts(name: str, message: DescriptorProto) -> Facts:
    found = {name: "message"}
    for field in message.field:
        oneof = "" if field.proto3_optional or not field.HasField("oneof_index") else " oneof"
        found[f"{name}/{field.number}"] = f"{_shape(field)} {field.name} ({field.json_name}){oneof}"
    for nested in message.nested_type:
        found |= _message_facts(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        found |= _enum_facts(f"{name}.{enum.name}", enum)
    return found


def _enum_facts(name: str, enum: EnumDescriptorProto) -> Facts:
    values = {f"{name}/{value.number}": value.name for value in enum.value}
    return {name: "enum", **values}


def _shape(field: FieldDescriptorProto) -> str:
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    if field.proto3_optional:
        label = "optional "
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return label + (field.type_name.removeprefix(".") or kind)


def main() -> int:
    """Compare, or with `--accept` take additions in; exit status 1 when something is amiss."""
    parser = argparse.ArgumentParser(description="hold worker.proto compatible")
    parser.add_argument("--accept", action="store_true", help="take additions into the lock")
    accept = parser.parse_args().accept
    released, present = released_facts(), present_facts()
    problems = broken(released, present)
    if not problems and accept:
        text = json.dumps(present, indent=1, sort_keys=True)
        Path(LOCK).write_text(text + "\n", "utf-8")
    elif not problems:
        problems = [f"{key}: not in the lock yet: --accept" for key in added(released, present)]
    sys.stdout.writelines(f"proto: {problem}\n" for problem in problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
