"""The command line's way to the agent: one gRPC channel on its unix socket, errors made our own.

A verb opens it with `connect`, asks, and closes it. The socket is tried first with a plain
connection, so that an agent that does not run is told in one line. grpc is imported only then:
help must not wait for it. What a refusal looks like on the wire is `agent/control/errors.py`; how
it is shown is `outcome.py`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from agent.errors import AgentError, Fault, InvalidSpec

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    from agent.control.errors import Refusal

VARIABLE = "KINDLING_SOCKET"
DEFAULT_SOCKET = "/run/kindling/kindling.sock"
SERVICE = "worker.v1.Worker"

# For what the agent answers from memory or within a few container operations.
ASK_S = 60.0
# As long as any node lets a pull take (images.pull_timeout_s), with the start that follows it. What
# brings nothing ends at the node much earlier.
PULL_S = 90_000.0
_CONNECT_S = 5.0
# What takes longer wants a word of explanation.
LATE_S = 1.0

Reply = TypeVar("Reply", bound="Message")


class NoAgent(AgentError):
    """No agent answers at the socket."""

    code = "NoAgent"
    retryable = True


class NoAnswer(NoAgent):
    """Something took the call and gave no answer: it starts, ends or is busy."""


class Refused(AgentError):
    """What the agent said instead of a reply; `log` holds the function's last lines, if any."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        metadata = dict(refusal.metadata or {})
        self.code = "".join(
            word.capitalize() for word in (refusal.reason or refusal.code.name).split("_")
        )
        self.fault = cast("Fault", metadata.pop("fault", "platform"))
        self.retryable = metadata.pop("retryable", "false") == "true"
        self.more = {name: _value(name, text) for name, text in metadata.items()}
        self.retry_after_s = refusal.retry_after_s
        self.log = refusal.log


class Client:
    """Calls of worker.v1 on an open channel. Every method raises AgentError only."""

    def __init__(self, channel: grpc.Channel, path: str) -> None:
        self._channel = channel
        self._path = path

    def ask(
        self,
        rpc: str,
        request: Message,
        reply: type[Reply],
        *,
        within_s: float | None = ASK_S,
        late: Callable[[], None] | None = None,
    ) -> Reply:
        """Make a call with one answer; None waits as long as it takes.

        `late` is called once if the answer takes longer than a second.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/{rpc}", _serialized, response_deserializer=reply.FromString
        )
        with self._refusals(rpc, within_s):
            if late is not None:
                return cast("Reply", _answer(call.future(request, timeout=within_s), late))
            return call(request, timeout=within_s)

    def follow(
        self, rpc: str, request: Message, reply: type[Reply], *, within_s: float | None = None
    ) -> Iterator[Reply]:
        """Make a call whose answers stream; it is cancelled when the caller stops reading."""
        call = self._channel.unary_stream(
            f"/{SERVICE}/{rpc}", _serialized, response_deserializer=reply.FromString
        )
        with self._refusals(rpc, within_s):
            replies = call(request, timeout=within_s)
            try:
                yield from replies
            finally:
                cast("Any", replies).cancel()

    def send(
        self, rpc: str, requests: Iterable[Message], reply: type[Reply], *, within_s: float
    ) -> Reply:
        """Make a call whose requests stream; an error of the iterable itself is raised as it is."""
        call = self._channel.stream_unary(
            f"/{SERVICE}/{rpc}", _serialized, response_deserializer=reply.FromString
        )
        broken: list[Exception] = []
        try:
            with self._refusals(rpc, within_s):
                # gRPC reads it in a thread of its own.
                return call(_kept(requests, broken), timeout=within_s)
        except AgentError:
            if broken:
                raise broken[0] from None
            raise

    @contextmanager
    def _refusals(self, rpc: str, within_s: float | None) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise _converted(error, rpc, within_s, self._path) from None


@contextmanager
def connect() -> Iterator[Client]:
    """Open a channel to the agent at KINDLING_SOCKET; raises NoAgent naming the way out."""
    path = socket_path()
    _knock(path)
    # Its own warnings are for its developers; they would break "one line first".
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.enable_http_proxy", 0),
        # A unix socket's path is no host name, and some servers refuse it as one.
        ("grpc.default_authority", "localhost"),
    ]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel:
        yield Client(channel, path)


def socket_path() -> str:
    """Return where the agent is to be found."""
    given = os.environ.get(VARIABLE, "") or DEFAULT_SOCKET
    return given.removeprefix("unix:").replace("//", "/")


def _knock(path: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_S)
            probe.connect(path)
    except PermissionError:
        raise NoAgent(
            f"{path} is open to root and the group kindling only: run "
            f"'sudo usermod -aG kindling {_user()}' and log in again, or use sudo"
        ) from None
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NoAgent(f"no agent runs at {path}: {_way_out()}") from None
    except TimeoutError:
        return  # a full queue is somebody's queue: let the call's own deadline decide
    except OSError as error:
        raise NoAgent(
            f"no agent can run at {path}: {error}; set {VARIABLE} to its socket"
        ) from None


def _way_out() -> str:
    start = "runuser -u kindling -- kindling run"
    if Path("/run/systemd/system").is_dir():
        start = "systemctl start kindling"
    return f"start it with '{start}', or set {VARIABLE} to another agent's socket"


def _user() -> str:
    with suppress(KeyError, OSError):
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    return "USER"


def _value(name: str, text: str) -> object:
    """ErrorInfo's metadata is all text; numbers and truths become themselves."""
    if name in ("exit_code", "signal") and text.lstrip("-").isdecimal():
        return int(text)
    return text == "true" if name == "out_of_memory" else text


def _answer(answer: Any, late: Callable[[], None]) -> object:
    import grpc

    try:
        try:
            return answer.result(timeout=LATE_S)
        except grpc.FutureTimeoutError:
            late()
        return answer.result()
    finally:
        # Of no effect once it has been answered; else the caller has been interrupted.
        answer.cancel()


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _kept(requests: Iterable[Message], broken: list[Exception]) -> Iterator[Message]:
    try:
        yield from requests
    except Exception as error:
        broken.append(error)
        raise


def _converted(error: Any, rpc: str, within_s: float | None, path: str) -> AgentError:
    """Return what a failed call means; what came with details is the agent's own word."""
    import grpc

    from agent.control.errors import told

    refusal = told(error)
    if refusal.problems:
        return InvalidSpec(refusal.problems)
    if refusal.reason:
        return Refused(refusal)
    if refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return NoAnswer(f"the agent at {path} did not answer {rpc} within {within_s:g} s")
    if refusal.code is grpc.StatusCode.UNAVAILABLE:
        return NoAnswer(
            f"the agent at {path} does not answer: it is starting or has just ended; try again, "
            "or look at its log"
        )
    if refusal.code is grpc.StatusCode.UNIMPLEMENTED:
        return NoAgent(
            f"what answers at {path} has no call {SERVICE}/{rpc}: an agent of an earlier release "
            "learns it once it is stopped and started"
        )
    return Refused(refusal)
