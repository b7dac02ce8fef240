"""Entry of the command `kindling`.

`supervise` and `worker` are the agent's own processes, started by itself: they go their way before
anything of the command line is loaded (the supervisor must stay within the standard library).
Every verb for people is in `group`.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run one command and exit with its status: 0 ok, 1 failed, 2 wrong use."""
    _open_streams()
    arguments = sys.argv[1:]
    match arguments[:1]:
        case ["supervise"]:
            from agent.rootless.supervise import main as supervise

            sys.exit(supervise(arguments[1:]))
        case ["worker"]:
            from agent.cli.worker import main as worker

            sys.exit(worker())
        case _:
            from agent.cli.group import kindling

            kindling(prog_name="kindling")


def _open_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    The next descriptor that is opened would otherwise get its number: a lock or a socket, which
    would then be taken for output, and be passed on to every child.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
