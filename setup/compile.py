"""Compiles what a warm call touches into extension modules, from the same plain Python.

`pyproject.toml` names the modules ([tool.kindling] compiled). mypyc turns them into C, the host's
compiler into shared objects, which Python prefers to the sources beside them; without them all is
as before. Called by setup/install.sh and by `make compiled`.

    compile.py SOURCE TARGET CACHE…

compiles what is in SOURCE/agent and puts the modules into TARGET/agent. The result is kept below
the last CACHE, under a hash of all it depends on, and taken from any of them the next time.

It runs in an interpreter that has mypy and setuptools, and the agent's dependencies, whose types
mypyc reads. The sources are only read.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIBRARY = "kindling"  # mypyc adds __mypyc; one shared object that all modules are parts of
OPTIMIZED = "2"
KEPT = 6  # results, of 3 MB each: of versions that are installed in turn
PACKAGE = "agent"

# What mypyc 2.4 gets wrong for us: file, pattern, replacement. A pattern that is found nowhere ends
# the build: then mypyc has changed, and tests/component/test_compiled.py tells if it may go.
_WEAK = r"\(\*\(\(PyObject \*\*\)\(\(char \*\)self \+ sizeof\(PyObject \*\) \+ sizeof\(\w+\)\)\)\);"
MENDED = (
    # Instances of classes with a Python base (Generic, a Protocol of asyncio's) have a list of weak
    # references before Python 3.12. It is no reference: visited and released as one, the collector
    # crashes as soon as somebody refers weakly to such an instance. It is emptied instead.
    ("__native*.c", rf"Py_VISIT{_WEAK}", ""),
    (
        "__native*.c",
        rf"Py_CLEAR{_WEAK}",
        "if (Py_REFCNT(self) == 0) PyObject_ClearWeakRefs((PyObject *)self);",
    ),
    # b"abc"[2:1] is empty; here it had a negative length and raised SystemError.
    ("bytes_ops.c", r"endn = Clamp\(endn, 0, len\);", "endn = Clamp(endn, startn, len);"),
)


def modules(source: Path) -> list[str]:
    """Return the files to compile, relative to `source`, sorted; packages' own files are not."""
    with (source / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["kindling"]["compiled"]
    found: set[str] = set()
    for pattern in patterns:
        paths = [path for path in source.glob(pattern) if path.name != "__init__.py"]
        if not paths:
            sys.exit(f"compile: no file matches {pattern}: mend compiled in pyproject.toml")
        found |= {str(path.relative_to(source)) for path in paths}
    return sorted(found)


def read_by_mypyc(source: Path) -> list[Path]:
    """Return the agent's files that the compiled ones import, however far away, and these."""
    left = [source / name for name in modules(source)]
    found = set(left)
    while left:
        for path in set(_imported(source, left.pop())) - found:
            found.add(path)
            left.append(path)
    return sorted(found)


def _imported(source: Path, path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = source.joinpath(*name.split("."))
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if name.split(".")[0] == PACKAGE and file.is_file():
                    yield file


def key(source: Path) -> str:
    """Return a hash of everything that the result depends on."""
    import mypy.version

    compiler = subprocess.run(
        [*_compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    told = [Path(__file__).read_text(), mypy.version.__version__, sys.version, compiler]
    told += modules(source)
    whole = hashlib.sha256("\0".join(told).encode())
    for path in read_by_mypyc(source):
        whole.update(f"\0{path.relative_to(source)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def _compiler() -> list[str]:
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[:1]


def build(source: Path, work: Path, out: Path) -> None:
    """Compile into `out`; C files and objects go to `work`."""
    import setuptools
    from mypyc.build import mypycify
    from setuptools.command.build_ext import build_ext

    os.chdir(source)  # tracebacks name files as they are named here: agent/core/pool.py
    # `make check` judges the types of all that is not compiled, with stubs that nodes do not have.
    options = ["--config-file", str(source / "pyproject.toml"), "--follow-imports=silent"]
    made = mypycify(
        [*options, *modules(source)],
        opt_level=OPTIMIZED,
        multi_file=True,
        group_name=LIBRARY,
        target_dir=str(work),
    )
    os.chdir(work)
    _mend(work)

    class Build(build_ext):  # type: ignore[misc]
        """As setuptools does it, but as many C files at once as there are processors."""

        def build_extensions(self) -> None:
            plain = self.compiler.compile
            with ThreadPoolExecutor(os.cpu_count()) as pool:

                def compile_all(sources: list[str], **options: Any) -> list[str]:
                    done = pool.map(lambda one: plain([one], **options), sources)
                    return [name for names in done for name in names]

                self.compiler.compile = compile_all
                super().build_extensions()

    setuptools.setup(
        name=LIBRARY,
        ext_modules=made,
        cmdclass={"build_ext": Build},
        script_args=["--quiet", "build_ext", "--build-lib", str(out), "--build-temp", str(work)],
    )


def _mend(work: Path) -> None:
    for name, pattern, replacement in MENDED:
        count = 0
        for path in work.rglob(name):
            text, times = re.subn(pattern, replacement, path.read_text())
            if times:
                path.write_text(text)
            count += times
        if not count:
            sys.exit(f"compile: {pattern} is found in no {name}: see whether mypyc has mended it")


def kept(source: Path, caches: list[Path]) -> Path:
    """Return the directory with the modules, made now if no cache has it."""
    name = key(source)
    for cache in caches:
        found = cache / name
        if found.is_dir():
            if os.access(cache, os.W_OK):
                os.utime(found)
            return found
    last = caches[-1]
    last.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=last, prefix=".making-") as scratch:
        work, out = Path(scratch, "work"), Path(scratch, "out")
        work.mkdir()
        build(source, work, out)
        out.rename(last / name)
    _forget(last)
    return last / name


def _forget(cache: Path) -> None:
    """Remove all but those used last."""
    found = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in found[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Do what the arguments say."""
    if len(sys.argv) < 4:
        sys.exit("usage: compile.py SOURCE TARGET CACHE…")
    source, target, *caches = (Path(name).resolve() for name in sys.argv[1:])
    shutil.copytree(kept(source, caches), target, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
