"""`kindling worker`: the agent's working process, started by the supervisor only.

Everything it does is built in `agent.app`.
"""

from __future__ import annotations


def main() -> int:
    """Run the worker until it is told to stop; return the exit status."""
    from agent.app import main as app

    return app()
