"""`kindling worker`: the agent's working process, started by the supervisor only.

Everything it does is built in `agent.app`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from contextlib import suppress

from agent.rootless import protocol


def main() -> int:
    """Run the worker until it is told to stop; return the exit status."""
    # From the first moment on: it would end the process. `aio/stacks.py` takes it over.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    # gRPC's fork handlers cost a line on stderr for every nft run; nothing forked here uses gRPC.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    try:
        from agent.app import main as app
    except Exception as error:
        # A release that is not whole: whoever asked for it is told, the log has the rest.
        _fail(f"{type(error).__name__}: {error}")
        raise
    return app()


def _fail(reason: str) -> None:
    with suppress(OSError):
        tell = int(os.environ.get(protocol.TELL_VARIABLE, "-1"))
        os.write(tell, protocol.line(protocol.FAILED, reason))
