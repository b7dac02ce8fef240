"""A program run as user kindling inside rootlesskit, driven from a test line by line.

The test side is `Session`: it copies the code to a place the user can read, starts rootlesskit with
a probe, and sends it requests as JSON lines. The probe side is `serve`: it runs one coroutine per
request and answers. When the session ends nothing of it is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

LIB = Path("/usr/lib/kindling")
CODE = Path(__file__).resolve().parents[2]
ANSWER_S = 60.0
END_S = 20.0


class ProbeFailed(Exception):
    """The probe raised; `kind` is the exception's class."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}\n{trace}")
        self.kind = kind
        self.message = message


class Session:
    """One rootlesskit with one probe in it."""

    def __init__(self, program: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="kindling-test-"))
        self.root.chmod(0o755)
        code = self.root / "code"
        for part in ("agent", "tests/inside"):
            shutil.copytree(CODE / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
        (code / "tests" / "__init__.py").touch()
        self.run = self.root / "run"
        self.run.mkdir()
        shutil.chown(self.run, "kindling", "kindling")
        self.prepare()
        self.stderr = (self.root / "stderr").open("w+")
        self.process = self._start(program, code)

    def prepare(self) -> None:
        """Make what the namespace is to see when it is made; for subclasses."""

    def _start(self, program: str, code: Path) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{LIB}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.run),
            "XDG_RUNTIME_DIR": str(self.run),
            "PYTHONPATH": str(code),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PROBE_RUN": str(self.run),
        }
        user = ["setpriv", "--reuid=kindling", "--regid=kindling", "--init-groups"]
        rootlesskit = [
            str(LIB / "bin" / "rootlesskit"),
            "--net=slirp4netns",
            "--detach-netns",
            "--disable-host-loopback",
            "--copy-up=/etc",
            "--copy-up=/run",
            "--propagation=rslave",
            f"--state-dir={self.run}/rootlesskit",
        ]
        probe = [str(LIB / "venv" / "bin" / "python"), "-m", f"tests.inside.{program}"]
        return subprocess.Popen(
            [*user, *rootlesskit, *probe],
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            start_new_session=True,
        )

    def call(self, step: str, /, **params: Any) -> Any:
        """Run one of the probe's steps and return what it returns; raises ProbeFailed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"call": step, "params": params}) + "\n")
        self.process.stdin.flush()
        # the probe bounds each step itself; this is for a probe that hangs
        answers, _, _ = select.select([self.process.stdout], [], [], ANSWER_S + 10)
        line = self.process.stdout.readline() if answers else ""
        if not line:
            self.stderr.seek(0)
            raise AssertionError(
                f"the probe ended or hung during {step}:\n{self.stderr.read()[-4000:]}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeFailed(*answer["error"])
        return answer["result"]

    def stop(self) -> None:
        """Close the probe's input and wait until all has ended; safe to call twice."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            # a session of its own (see _start): this ends rootlesskit, slirp and all processes
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
            self.stderr.close()

    def end(self) -> None:
        """Stop, and remove the directory."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.root)


Step = Callable[..., Awaitable[Any]]


def serve(steps: dict[str, Step], end: Callable[[], Awaitable[None]]) -> None:
    """Answer requests from standard input until it closes; then run `end`."""
    uvloop.run(_serve(steps, end))


async def _serve(steps: dict[str, Step], end: Callable[[], Awaitable[None]]) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            request = json.loads(line)
            try:
                async with asyncio.timeout(ANSWER_S):
                    result = await steps[request["call"]](**request["params"])
                answer: dict[str, Any] = {"result": result}
            except Exception as error:
                answer = {"error": [type(error).__name__, str(error), traceback.format_exc()]}
            os.write(1, json.dumps(answer).encode() + b"\n")
    finally:
        await end()
