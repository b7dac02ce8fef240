"""agent/_pb is what `make proto` makes of proto/ today."""

import filecmp
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from agent._pb.worker.v1 import worker_pb2
from proto.generate import TARGET, generate


def _files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    made = tmp_path / "_pb"
    generate(made)
    assert _files(made) == _files(TARGET), "run `make proto`"
    _, different, failed = filecmp.cmpfiles(made, TARGET, _files(made), shallow=False)
    assert (different, failed) == ([], []), "run `make proto`"


def test_generated_imports_stay_below_our_package() -> None:
    for path in TARGET.rglob("*.py*"):
        if "__pycache__" not in path.parts:
            assert "\nfrom containerd" not in path.read_text()
            assert "\nfrom worker" not in path.read_text()


def _messages(messages: Mapping[str, Descriptor]) -> list[Descriptor]:
    nested = [found for one in messages.values() for found in _messages(one.nested_types_by_name)]
    return [*messages.values(), *nested]


def test_json_names_equal_the_names_in_toml() -> None:
    for message in _messages(worker_pb2.DESCRIPTOR.message_types_by_name):
        for field in message.fields:
            assert field.json_name == field.name, f"{field.full_name}: add json_name"
