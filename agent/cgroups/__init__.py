"""Control groups of instances: where they are, what they say, freezing and thawing.

Limits are written by the OCI runtime from the spec; the node's own directory is made by
`agent.rootless.cgroup` before the namespace is entered.
"""
