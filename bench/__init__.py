"""Benches: every figure beside a peer's from the same run, interleaved, as medians and ratios.

`python -m bench [NAME …]` runs them (see `__main__`); a module with a `run(options)` is one. What
they share: `figures` (statistics, pure), `machine` (facts), `probe` (the client), `node` (an agent
of its own) and `house` (a second rootless house for the peers). Nothing here is part of the agent.
"""
