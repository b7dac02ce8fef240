"""The callers' door: a raw HTTP/1.1 data path on uvloop, and the admin door beside it."""
