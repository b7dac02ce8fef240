"""The only door to containerd: an asynchronous client for the part of its API the agent speaks."""
