"""USER of an image against its own passwd and group files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.users import MAX_ID, User, resolve_user
from agent.errors import InvalidSpec

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# comment:x:1:1::/:
app:x:1000:1001:App:/home/app:/bin/sh
broken line
noid:x:abc:1::/:
1234:x:77:77::/home/named-like-a-number:/bin/sh
huge:x:4294967294:0::/:
short:x:5:6
"""
GROUP = b"""root:x:0:
app:x:1001:
wheel:x:10:root,app
docker:x:999:app
dup:x:10:app
bad:x:zz:app
nogroup:x:65534:
"""


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("", User(0, 0, (10,), "/root")),
        ("root", User(0, 0, (10,), "/root")),
        ("app", User(1000, 1001, (10, 999), "/home/app")),
        ("1000", User(1000, 1001, (10, 999), "/home/app")),
        ("app:wheel", User(1000, 10, (), "/home/app")),
        ("app:5", User(1000, 5, (), "/home/app")),
        ("4000", User(4000, 0, (), "/")),
        ("4000:nogroup", User(4000, 65534, (), "/")),
        ("65535:65535", User(65535, 65535, (), "/")),
        ("1234", User(77, 77, (), "/home/named-like-a-number")),
        (":wheel", User(0, 10, (), "/root")),
        ("short", User(5, 6, (), "/")),
    ],
)
def test_users_are_found(user, found):
    assert resolve_user(user, PASSWD, GROUP) == found


def test_an_image_without_accounts_knows_numbers_and_root():
    assert resolve_user("") == User()
    assert resolve_user("1000:1000") == User(1000, 1000)


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "user 'nobody' is not in the image's /etc/passwd"),
        ("app:nobody", "group 'nobody' is not in the image's /etc/group"),
        ("70000", "outside 0-65535"),
        ("0:70000", "outside 0-65535"),
        ("huge", "not in the image's"),
        ("noid", "not in the image's"),
        ("-1", "not in the image's"),
        ("²", "not in the image's"),
    ],
)
def test_unknown_users_are_named(user, words):
    with pytest.raises(InvalidSpec) as error:
        resolve_user(user, PASSWD, GROUP)
    assert error.value.problems[0].field == "user"
    assert words in str(error.value)


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_junk_files_never_crash_and_ids_stay_in_the_container(user, passwd, group):
    try:
        found = resolve_user(user, passwd, group)
    except InvalidSpec:
        return
    assert all(0 <= number <= MAX_ID for number in (found.uid, found.gid, *found.groups))
    assert found.home.startswith("/")


def test_a_number_of_thousands_of_digits_is_outside_and_no_crash():
    with pytest.raises(InvalidSpec, match="outside 0-65535"):
        resolve_user("9" * 5000, b"root:x:0:0:root:/root:/bin/sh\n")
