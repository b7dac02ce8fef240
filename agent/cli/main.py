"""Entry of the command `kindling`.

`supervise` and `worker` are the agent's own processes, started by itself: they go their way before
anything of the command line is loaded (the supervisor must stay within the standard library).
Every verb for people is in `group`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run one command and exit with its status: 0 ok, 1 failed, 2 wrong use."""
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


if __name__ == "__main__":
    main()
