"""worker.v1 only ever grows, and the check that says so really catches what it should."""

from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from proto.generate import SOURCE, describe
from proto.lock import FILE, Facts, added, broken, facts, present_facts, released_facts

Change = Callable[[FileDescriptorProto], None]


def _file() -> FileDescriptorProto:
    (file,) = [file for file in describe(SOURCE, [FILE]).file if file.name == FILE]
    return file


def _field(file: FileDescriptorProto, message: str, name: str) -> FieldDescriptorProto:
    (owner,) = [one for one in file.message_type if one.name == message]
    (field,) = [one for one in owner.field if one.name == name]
    return field


def _changed(change: Change) -> Facts:
    file = _file()
    change(file)
    return facts(file)


def test_nothing_released_is_gone_or_different() -> None:
    assert broken(released_facts(), present_facts()) == []


def test_the_lock_holds_everything_there_is() -> None:
    assert added(released_facts(), present_facts()) == [], "run `python -m proto.lock --accept`"


def _remove_field(file: FileDescriptorProto) -> None:
    (call,) = [one for one in file.message_type if one.name == "Call"]
    del call.field[0]


def _change_type(file: FileDescriptorProto) -> None:
    _field(file, "Call", "id").type = FieldDescriptorProto.TYPE_BYTES


def _renumber(file: FileDescriptorProto) -> None:
    _field(file, "Call", "id").number = 99


def _rename(file: FileDescriptorProto) -> None:
    _field(file, "Call", "id").name = "call_id"


def _rename_in_json(file: FileDescriptorProto) -> None:
    _field(file, "FunctionSpec", "memory_mb").json_name = "memoryMb"


def _make_repeated(file: FileDescriptorProto) -> None:
    _field(file, "Call", "id").label = FieldDescriptorProto.LABEL_REPEATED


def _drop_presence(file: FileDescriptorProto) -> None:
    field = _field(file, "FunctionSpec", "memory_mb")
    field.proto3_optional = False
    field.ClearField("oneof_index")


def _leave_oneof(file: FileDescriptorProto) -> None:
    _field(file, "Secret", "value").ClearField("oneof_index")


def _remove_message(file: FileDescriptorProto) -> None:
    del file.message_type[0]


def _renumber_enum(file: FileDescriptorProto) -> None:
    file.enum_type[0].value[1].number = 77


def _remove_call(file: FileDescriptorProto) -> None:
    del file.service[0].method[0]


def _stop_streaming(file: FileDescriptorProto) -> None:
    for method in file.service[0].method:
        method.server_streaming = False


@pytest.mark.parametrize(
    "change",
    [
        _remove_field,
        _change_type,
        _renumber,
        _rename,
        _rename_in_json,
        _make_repeated,
        _drop_presence,
        _leave_oneof,
        _remove_message,
        _renumber_enum,
        _remove_call,
        _stop_streaming,
    ],
)
def test_a_breaking_change_is_caught(change: Change) -> None:
    assert broken(facts(_file()), _changed(change))


def test_an_addition_is_no_breakage_but_is_seen() -> None:
    def add_field(file: FileDescriptorProto) -> None:
        (call,) = [one for one in file.message_type if one.name == "Call"]
        call.field.add(name="note", number=500, type=FieldDescriptorProto.TYPE_STRING)

    before = facts(_file())
    after = _changed(add_field)
    assert broken(before, after) == []
    assert added(before, after) == ["worker.v1.Call/500"]
