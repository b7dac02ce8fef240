"""Calls: from a caller's head to the end of the reply, whatever the bytes come through."""
