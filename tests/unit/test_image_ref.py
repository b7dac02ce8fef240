"""Image references, taken apart."""

from __future__ import annotations

import pytest

from agent.model.image_ref import parse_image_ref

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.25", "docker.io/library/nginx:1.25"),
        ("user/app", "docker.io/user/app:latest"),
        ("kindling.local/hello-event:1", "kindling.local/hello-event:1"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("localhost/a", "localhost/a:latest"),
        ("registry:5000/a", "registry:5000/a:latest"),
        ("127.0.0.1:5000/a_b/c.d--e", "127.0.0.1:5000/a_b/c.d--e:latest"),
        (f"host.io/a@{DIGEST}", f"host.io/a@{DIGEST}"),
        (f"host.io/a:1@{DIGEST}", f"host.io/a:1@{DIGEST}"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
    ],
)
def test_a_reference_is_completed_as_everywhere(text, full):
    assert parse_image_ref(text).full == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "a b",
        "a:",
        "a/",
        "/a",
        "a//b",
        "host.io/UP",
        "a:" + "t" * 129,
        "a@sha256:" + "g" * 64,
        "a@md5:" + "a" * 32,
        "http://host/a",
        "a\n",
        "a" * 600,
    ],
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ValueError, match="not an image reference"):
        parse_image_ref(text)
