"""Generate `agent/_pb` from the `.proto` files beside this script.

Besides protoc's own output it rewrites imports, so that packages such as `containerd` live below
`agent._pb` and never shadow another distribution, and it writes typed stubs for the gRPC classes,
which protoc does not. The output depends on the `.proto` files and the locked grpcio-tools alone.
Run: `python proto/generate.py [--out DIR]`; `tests/style/test_proto_fresh.py` holds it fresh.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import google.rpc.status_pb2
import grpc_tools  # type: ignore[import-untyped]
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

SOURCE = Path(__file__).resolve().parent
TARGET = SOURCE.parent / "agent" / "_pb"
PACKAGE = "agent._pb"
BUNDLED = Path(grpc_tools.__file__).parent / "_proto"
GOOGLEAPIS = Path(google.rpc.status_pb2.__file__).parents[2]


def sources(root: Path = SOURCE) -> list[str]:
    """Return every `.proto` file below `root`, as sorted paths relative to it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))


def describe(
    root: Path = SOURCE, names: list[str] | None = None
) -> descriptor_pb2.FileDescriptorSet:
    """Compile `names` (by default all) and return their descriptors and those of their imports."""
    found = descriptor_pb2.FileDescriptorSet()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set.pb"
        _protoc(root, ["--include_imports", f"--descriptor_set_out={out}"], names or sources(root))
        found.ParseFromString(out.read_bytes())
    return found


def generate(out: Path) -> None:
    """Fill the directory `out` with the generated package, replacing what it held."""
    names = sources()
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "pb"
        raw.mkdir()
        options = [f"--python_out={raw}", f"--pyi_out={raw}", f"--grpc_python_out={raw}"]
        _protoc(SOURCE, options, names)
        _write_stubs(raw, names)
        _rewrite(raw, {name.split("/")[0] for name in names})
        _mark_packages(raw)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(raw, out)


def _protoc(root: Path, options: list[str], names: list[str]) -> None:
    include = [f"-I{path}" for path in (root, BUNDLED, GOOGLEAPIS)]
    if protoc.main(["protoc", *include, *options, *names]) != 0:
        raise SystemExit("proto: protoc refused the files; its message stands above")


def _rewrite(raw: Path, tops: set[str]) -> None:
    pattern = re.compile(rf"^from ({'|'.join(sorted(tops))})([. ])", re.MULTILINE)
    for path in [*raw.rglob("*.py"), *raw.rglob("*.pyi")]:
        path.write_text(pattern.sub(rf"from {PACKAGE}.\1\2", path.read_text()))


def _mark_packages(raw: Path) -> None:
    text = '"""Generated from proto/ by proto/generate.py; never edited."""\n'
    for folder in [raw, *(path for path in raw.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(text)


def _write_stubs(raw: Path, names: list[str]) -> None:
    """Write a `.pyi` beside each gRPC module, and drop the modules of files without a service."""
    descriptors = describe(SOURCE, names)
    homes = {kind: file.name for file in descriptors.file for kind in _message_names(file)}
    for file in descriptors.file:
        if file.name not in names:
            continue
        module = raw / file.name.replace(".proto", "_pb2_grpc.py")
        if file.service:
            module.with_suffix(".pyi").write_text(_stub_text(file, homes))
        else:
            module.unlink()


def _message_names(file: descriptor_pb2.FileDescriptorProto) -> list[str]:
    return [f".{file.package}.{message.name}" for message in file.message_type]


def _stub_text(file: descriptor_pb2.FileDescriptorProto, homes: dict[str, str]) -> str:
    used: set[str] = set()

    def python_name(kind: str) -> str:
        home = homes[kind]
        used.add(home)
        return f"{_alias(home)}.{kind.rsplit('.', 1)[1]}"

    body: list[str] = []
    for service in file.service:
        body += _service_text(service, python_name)
    head = ["from collections.abc import AsyncIterator", "", "import grpc", "import grpc.aio"]
    head += [_import_line(home) for home in sorted(used)]
    return "\n".join([*head, "", *body]) + "\n"


def _service_text(
    service: descriptor_pb2.ServiceDescriptorProto, python_name: Callable[[str], str]
) -> list[str]:
    stub = [
        f"class {service.name}Stub:",
        "    def __init__(self, channel: grpc.aio.Channel) -> None: ...",
    ]
    servicer = [f"class {service.name}Servicer:"]
    for method in service.method:
        request, reply = python_name(method.input_type), python_name(method.output_type)
        shape = ("Stream" if method.client_streaming else "Unary") + (
            "Stream" if method.server_streaming else "Unary"
        )
        stub.append(f"    {method.name}: grpc.aio.{shape}MultiCallable[{request}, {reply}]")
        given = f"AsyncIterator[{request}]" if method.client_streaming else request
        word, result = (
            ("def", f"AsyncIterator[{reply}]") if method.server_streaming else ("async def", reply)
        )
        servicer.append(
            f"    {word} {method.name}(self, request: {given}, "
            f"context: grpc.aio.ServicerContext[{request}, {reply}], /) -> {result}: ..."
        )
    add = (
        f"def add_{service.name}Servicer_to_server("
        f"servicer: {service.name}Servicer, server: grpc.aio.Server) -> None: ..."
    )
    return [*stub, "", *servicer, "", add, ""]


def _alias(home: str) -> str:
    return "_" + home.removesuffix(".proto").replace("/", "_") + "_pb2"


def _import_line(home: str) -> str:
    folder, _, name = home.removesuffix(".proto").rpartition("/")
    return f"from {folder.replace('/', '.')} import {name}_pb2 as {_alias(home)}"


def main() -> None:
    """Generate into `--out`, by default `agent/_pb`."""
    parser = argparse.ArgumentParser(description="generate agent/_pb from proto/")
    parser.add_argument("--out", type=Path, default=TARGET)
    out = parser.parse_args().out
    generate(out)
    sys.stdout.write(f"proto: {len(sources())} files generated below {out}\n")


if __name__ == "__main__":
    main()
