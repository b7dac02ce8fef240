"""Image references: short names made full, mistakes named."""

import pytest

from agent.containerd.reference import parse
from agent.errors import InvalidSpec

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/me/app:2", "docker.io/me/app:2"),
        ("kindling.local/hello-event:1", "kindling.local/hello-event:1"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/a/b__c:v1.2", "127.0.0.1:5000/a/b__c:v1.2"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        (f"r.example/app@{DIGEST}", f"r.example/app@{DIGEST}"),
        (f"r.example/app:1@{DIGEST}", f"r.example/app:1@{DIGEST}"),
        (" busybox\n", "docker.io/library/busybox:latest"),
    ],
)
def test_names_are_made_full_and_stay_so(text: str, full: str) -> None:
    assert str(parse(text)) == full
    assert parse(full) == parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a repository is"),
        ("Busybox", "a repository is"),
        ("a//b", "a repository is"),
        ("a/../b", "a repository is"),
        ("r.example/" + "a" * 256, "a repository is"),
        ("app:", "a tag is"),
        ("app:-x", "a tag is"),
        ("app:" + "x" * 129, "a tag is"),
        ("app@md5:1", "the part after @"),
        ("app@", "the part after @"),
        ("-r.example/app", "no host name"),
        ("r.example:x/app", "no host name"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        parse(text)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("127.0.0.1:5000/a", True),
        ("127.8.9.1:80/a", True),
        ("localhost:5000/a", True),
        ("[::1]:5000/a", True),
        ("127.0.0.1:443/a", False),
        ("localhost/a", False),
        ("10.0.0.1:5000/a", False),
        ("r.example:5000/a", False),
        ("busybox", False),
    ],
)
def test_only_loopback_with_a_port_goes_without_tls(text: str, plain: bool) -> None:
    assert parse(text).plain_http is plain


def test_the_digest_is_asked_for_before_the_tag() -> None:
    assert parse(f"app:1@{DIGEST}").version == DIGEST
    assert parse("app:1").version == "1"
