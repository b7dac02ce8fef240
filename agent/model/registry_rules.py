"""The rules of a `registry` table, of a deploy's or of one call's. No problem repeats a value."""

from __future__ import annotations

from collections.abc import Iterator

from agent.errors import Problem
from agent.model.spec import RegistrySpec

MAX_SECRET_CHARS = 64 << 10  # clouds give tokens of a few thousand
MAX_USERNAME_CHARS = 1024
MAX_CA_CHARS = 1 << 20
MAX_WORDS = 64
MAX_WORD_CHARS = 4096


def registry_problems(registry: RegistrySpec, field: str = "registry") -> Iterator[Problem]:
    """Yield everything that is wrong with a table at `field`."""
    lengths = (
        ("username", MAX_USERNAME_CHARS),
        ("password", MAX_SECRET_CHARS),
        ("identity_token", MAX_SECRET_CHARS),
        ("ca_pem", MAX_CA_CHARS),
    )
    for name, most in lengths:
        if len(getattr(registry, name)) > most:
            yield Problem(f"{field}.{name}", f"is longer than {most} characters")
    if registry.password and not registry.username:
        yield Problem(f"{field}.username", "is missing beside the password")
    if ":" in registry.username or not registry.username.isprintable():
        yield Problem(f"{field}.username", "must be printable and without a colon")
    words = registry.credential_command
    if len(words) > MAX_WORDS or any(len(word) > MAX_WORD_CHARS for word in words):
        most_text = f"{MAX_WORDS} words of {MAX_WORD_CHARS} characters"
        yield Problem(f"{field}.credential_command", f"is longer than {most_text}")
    if words and (not words[0] or any("\0" in word for word in words)):
        yield Problem(f"{field}.credential_command", "must begin with a program, and hold no NUL")
