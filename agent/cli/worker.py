"""`kindling worker`: the agent's working process, started by the supervisor only.

Everything it does is built in `agent.app`.
"""

from __future__ import annotations

import os


def main() -> int:
    """Run the worker until it is told to stop; return the exit status."""
    # gRPC's fork handlers cost a line on stderr for every nft run; nothing forked here uses gRPC.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from agent.app import main as app

    return app()
