"""Image references, taken apart as the reference implementation (distribution/reference) does.

Its published examples are the tables REFERENCES (reference_test.go), NAMES and FULL_NAMES
(normalize_test.go); what is ours alone comes after them.
"""

from __future__ import annotations

import pytest

from agent.model.image_ref import parse_image_ref

DIGEST = "sha256:" + "a" * 64
F = "sha256:" + "f" * 64
IDENTIFIER = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a"
E6 = "sha256:e6693c20186f837fc393390135d8a598a96a833917917789d63766cab6c59582"


def test_index_docker_io_is_docker_io_whoever_asks():
    for text in ("x", "library/x", "docker.io/x", "index.docker.io/x", "index.docker.io/library/x"):
        assert parse_image_ref(text).full == "docker.io/library/x:latest"


# Text, host, path, tag, digest. Names without a host are there taken apart before they are
# completed; here after it.
REFERENCES = [
    ("test_com", "docker.io", "library/test_com", "", ""),
    ("test.com:tag", "docker.io", "library/test.com", "tag", ""),
    ("test.com:5000", "docker.io", "library/test.com", "5000", ""),
    ("test.com/repo:tag", "test.com", "repo", "tag", ""),
    ("test:5000/repo", "test:5000", "repo", "", ""),
    ("test:5000/repo:tag", "test:5000", "repo", "tag", ""),
    (f"test:5000/repo@{F}", "test:5000", "repo", "", F),
    (f"test:5000/repo:tag@{F}", "test:5000", "repo", "tag", F),
    ("lowercase:Uppercase", "docker.io", "library/lowercase", "Uppercase", ""),
    ("a/" * 127 + "a:tag-over-max", "docker.io", "a/" * 127 + "a", "tag-over-max", ""),
    ("sub-dom1.foo.com/bar/baz/quux", "sub-dom1.foo.com", "bar/baz/quux", "", ""),
    ("sub-dom1.foo.com/bar/baz/quux:long-tag", "sub-dom1.foo.com", "bar/baz/quux", "long-tag", ""),
    ("b.gcr.io/test.a.com/my-app:test.a.com", "b.gcr.io", "test.a.com/my-app", "test.a.com", ""),
    ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com", "myimage", "xn--n3h.com", ""),
    (f"xn--7o8h.com/myimage:xn--7o8h.com@{F}", "xn--7o8h.com", "myimage", "xn--7o8h.com", F),
    ("foo_bar.com:8080", "docker.io", "library/foo_bar.com", "8080", ""),
    ("foo/foo_bar.com:8080", "docker.io", "foo/foo_bar.com", "8080", ""),
    ("192.168.1.1", "docker.io", "library/192.168.1.1", "", ""),
    ("192.168.1.1:tag", "docker.io", "library/192.168.1.1", "tag", ""),
    ("192.168.1.1:5000", "docker.io", "library/192.168.1.1", "5000", ""),
    ("192.168.1.1/repo", "192.168.1.1", "repo", "", ""),
    ("192.168.1.1:5000/repo", "192.168.1.1:5000", "repo", "", ""),
    ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000", "repo", "5050", ""),
    ("[2001:db8::1]/repo", "[2001:db8::1]", "repo", "", ""),
    ("[2001:db8::1]:5000/repo", "[2001:db8::1]:5000", "repo", "", ""),
    ("[2001:db8::1]:5000/repo:tag", "[2001:db8::1]:5000", "repo", "tag", ""),
    (f"[2001:db8::1]:5000/repo@{F}", "[2001:db8::1]:5000", "repo", "", F),
    (f"[2001:db8::1]:5000/repo:tag@{F}", "[2001:db8::1]:5000", "repo", "tag", F),
    ("[2001:db8::]:5000/repo", "[2001:db8::]:5000", "repo", "", ""),
    ("[::1]:5000/repo", "[::1]:5000", "repo", "", ""),
    ("example.com/" + "a" * 255 + ":tag", "example.com", "a" * 255, "tag", ""),
    ("test.com/foo", "test.com", "foo", "", ""),
    ("test_com/foo", "docker.io", "test_com/foo", "", ""),
    ("docker/migrator", "docker.io", "docker/migrator", "", ""),
    ("test.com:8080/foo", "test.com:8080", "foo", "", ""),
    ("test-com:8080/foo", "test-com:8080", "foo", "", ""),
    ("foo", "docker.io", "library/foo", "", ""),
    ("xn--n3h.com:18080/foo", "xn--n3h.com:18080", "foo", "", ""),
    ("docker.io/foo", "docker.io", "library/foo", "", ""),
    ("docker.io/library/foo", "docker.io", "library/foo", "", ""),
    ("docker.io/library/foo/bar", "docker.io", "library/foo/bar", "", ""),
    (f"docker.io/{IDENTIFIER}", "docker.io", f"library/{IDENTIFIER}", "", ""),
    (IDENTIFIER[:-1], "docker.io", f"library/{IDENTIFIER[:-1]}", "", ""),
]


@pytest.mark.parametrize(("text", "host", "path", "tag", "digest"), REFERENCES)
def test_a_reference_is_taken_apart_as_published(text, host, path, tag, digest):
    found = parse_image_ref(text)
    assert (found.host, found.path, found.tag, found.digest) == (host, path, tag, digest)


# Text and the full name without a tag.
NAMES = [
    ("localhost/fooo", "localhost/fooo"),
    ("localhost/fooo/bar", "localhost/fooo/bar"),
    ("LOCALDOMAIN/fooo", "LOCALDOMAIN/fooo"),
    ("LOCALDOMAIN/fooo/bar", "LOCALDOMAIN/fooo/bar"),
    ("fooo/bar", "docker.io/fooo/bar"),
    ("index.docker.io/fooo/bar", "docker.io/fooo/bar"),
    ("ubuntu", "docker.io/library/ubuntu"),
    ("library/ubuntu", "docker.io/library/ubuntu"),
    ("nonlibrary/ubuntu", "docker.io/nonlibrary/ubuntu"),
    ("other/library", "docker.io/other/library"),
    ("127.0.0.1:8000/private/moonbase", "127.0.0.1:8000/private/moonbase"),
    ("127.0.0.1:8000/privatebase", "127.0.0.1:8000/privatebase"),
    ("example.com/private/moonbase", "example.com/private/moonbase"),
    ("example.com/privatebase", "example.com/privatebase"),
    ("example.com:8000/private/moonbase", "example.com:8000/private/moonbase"),
    ("example.com:8000/privatebasee", "example.com:8000/privatebasee"),
    ("ubuntu-12.04-base", "docker.io/library/ubuntu-12.04-base"),
    ("index.docker.io/library/ubuntu-12.04-base", "docker.io/library/ubuntu-12.04-base"),
    ("docker.io/foo", "docker.io/library/foo"),
    ("library/foo/bar", "docker.io/library/foo/bar"),
    ("store/foo/bar", "docker.io/store/foo/bar"),
    ("Foo/bar", "Foo/bar"),
    ("FOO/bar", "FOO/bar"),
    ("Docker/docker", "Docker/docker"),
    ("index.docker.io/debian", "docker.io/library/debian"),
    ("192.168.0.1:8/debian", "192.168.0.1:8/debian"),
    ("192.168.0.2:25000/debian", "192.168.0.2:25000/debian"),
    ("[fc00::1]:5000/docker", "[fc00::1]:5000/docker"),
    ("[fc00:1:2:3:4:5:6:7]:5000/library/debian", "[fc00:1:2:3:4:5:6:7]:5000/library/debian"),
    (
        "thisisthesong" * 4 + "thatneverend",
        "docker.io/library/" + "thisisthesong" * 4 + "thatneverend",
    ),
    ("docker-rules/docker", "docker.io/docker-rules/docker"),
    ("docker---rules/docker", "docker.io/docker---rules/docker"),
    ("d/docker", "docker.io/d/docker"),
    ("dock__er/docker", "docker.io/dock__er/docker"),
]


@pytest.mark.parametrize(("text", "name"), NAMES)
def test_a_short_name_is_completed_as_published(text, name):
    found = parse_image_ref(text)
    assert found.name == name
    assert found.full == f"{name}:latest"


FULL_NAMES = [
    ("busybox", "docker.io/library/busybox:latest"),
    ("busybox:latest", "docker.io/library/busybox:latest"),
    (f"busybox@{E6}", f"docker.io/library/busybox@{E6}"),
    ("library/busybox", "docker.io/library/busybox:latest"),
    ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
    ("docker.io/busybox:latest", "docker.io/library/busybox:latest"),
    ("library/busybox:latest", "docker.io/library/busybox:latest"),
    ("gcr.io/library/busybox", "gcr.io/library/busybox:latest"),
    ("dmcgowan/myapp:latest", "docker.io/dmcgowan/myapp:latest"),
    (f"dmcgowan/myapp@{E6}", f"docker.io/dmcgowan/myapp@{E6}"),
    # With both, its ParseNormalizedNamed keeps the tag, its ParseDockerRef does not: we keep it.
    (f"busybox:latest@{E6}", f"docker.io/library/busybox:latest@{E6}"),
    (f"gcr.io/library/busybox:1@{E6}", f"gcr.io/library/busybox:1@{E6}"),
]


@pytest.mark.parametrize(("text", "full"), FULL_NAMES)
def test_a_reference_gets_its_full_name_as_published(text, full):
    assert parse_image_ref(text).full == full
    assert parse_image_ref(full).full == full


REFUSED = [
    # reference_test.go
    ("", "is empty"),
    (":justtag", "a repository is"),
    (f"@{F}", "a repository is"),
    ("repo@sha256:" + "f" * 34, "64 hex digits"),
    ("validname@invaliddigest:" + "f" * 64, "must be sha256"),
    ("validname@sha512:" + "f" * 128, "must be sha256"),
    ("Uppercase:tag", "lower case"),
    ("test:5000/Uppercase/lowercase:tag", "lower case"),
    ("domain/" + "a" * 256 + ":tag", "255"),
    ("example.com/" + "a" * 256, "255"),
    ("aa/asdf$$^/aa", "a repository is"),
    ("[2001:db8::1]", "a repository is"),
    ("[2001:db8::1]:5000", "a repository is"),
    ("[2001:db8::1]:tag", "a repository is"),
    ("[fe80::1%eth0]:5000/repo", "no host"),
    ("[fe80::1%@invalidzone]:5000/repo", "sha256"),
    # normalize_test.go
    ("https://github.com/docker/docker", "no host"),
    ("docker/Docker", "lower case"),
    ("-docker", "a repository is"),
    ("-docker/docker", "a repository is"),
    ("-docker.io/docker/docker", "no host"),
    ("docker///docker", "a repository is"),
    ("docker.io/docker/Docker", "lower case"),
    ("docker.io/docker///docker", "a repository is"),
    ("[fc00::1]", "a repository is"),
    ("[fc00::1]:5000", "a repository is"),
    ("fc00::1:5000/debian", "no host"),
    ("[2001:db8:3:4::192.0.2.33]:5000/debian", "no host"),
    (IDENTIFIER, "an image's id"),
    ("docker-/docker", "a repository is"),
    ("-docker-/docker", "a repository is"),
    ("____/____", "a repository is"),
    ("_docker/_docker", "a repository is"),
    ("dock..er/docker", "no host"),
    ("dock_.er/docker", "no host"),
    ("dock-.er/docker", "no host"),
    ("docker/", "a repository is"),
    ("this_is_not_a_valid_namespace_because_its_too_long_" * 6 + "a/docker", "255"),
    ("-foo", "a repository is"),
    ("busybox:-foo", "a tag is"),
    ("busybox@foo", "sha256"),
    # regexp_test.go
    ("test.com:http/a", "no host"),
    ("ab-.com/a", "no host"),
    ("ab.-com/a", "no host"),
    ("[fd00:1:2::3]75050/a", "no host"),
    ("[fd00:1:2::3]::75050/a", "no host"),
    ("do__cker:8080/docker", "no host"),
    (".docker/docker", "no host"),
    ("docker./docker", "no host"),
    ("a/a/a/a/", "a repository is"),
    ("registry.com:8080/myapp@bad", "sha256"),
    ("registry.com:8080/myapp:invalid~tag", "a tag is"),
    # It accepts these, and leaves it to the connection to fail.
    ("192.168.1.1:75050/a", "no host"),
    ("192.168.1.1:0/a", "no host"),
    ("[fd00123123123]:750/a", "no host"),
    # Ours.
    ("a b", "a repository is"),
    (" a", "a repository is"),
    ("a\n", "a repository is"),
    ("a:", "a tag is"),
    ("a:" + "t" * 129, "a tag is"),
    ("a:t\n", "a tag is"),
    ("a@", "sha256"),
    ("a@sha256:" + "A" * 64, "64 hex digits"),
    (f"a@{DIGEST}\n", "64 hex digits"),
    ("a/../b", "a repository is"),
    ("/a", "a repository is"),
    ("a/\N{LATIN SMALL LETTER E WITH ACUTE}", "a repository is"),
    ("\N{ARABIC-INDIC DIGIT ONE}.io/a", "no host"),
    ("a.io:\N{ARABIC-INDIC DIGIT ONE}/a", "no host"),
    ("a" * 5000, "characters"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_is_no_reference_is_refused_by_its_mistake(text, words):
    with pytest.raises(ValueError, match="is not an image reference") as caught:
        parse_image_ref(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("kindling.local/hello-event:1", "kindling.local/hello-event:1"),
        ("127.0.0.1:5000/a_b/c.d--e", "127.0.0.1:5000/a_b/c.d--e:latest"),
        (f"host.io/a@{DIGEST}", f"host.io/a@{DIGEST}"),
        ("a:_t.-", "docker.io/library/a:_t.-"),
    ],
)
def test_a_full_name_stays_what_it_is(text, full):
    assert parse_image_ref(text).full == full
    assert parse_image_ref(full).full == full


def test_the_longest_reference_is_one():
    text = f"{'h' * 251}.org:65535/{'a' * 255}:{'t' * 128}@{DIGEST}"
    assert parse_image_ref(text).full == text


def test_the_digest_is_asked_for_before_the_tag():
    assert parse_image_ref(f"app:1@{DIGEST}").version == DIGEST
    assert parse_image_ref("app:1").version == "1"
    assert parse_image_ref("app").version == "latest"
