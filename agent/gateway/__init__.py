"""The callers' door on uvloop: `wire` knows bytes, `exchanges` calls, `doors` the ways in."""
