"""HTTP/1.1 as bytes: heads, bodies, and the connections on both sides. Knows no function."""
