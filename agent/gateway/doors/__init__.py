"""Ways in: callers' sockets, memory, vendors' envelopes, and the operators' door beside them."""
