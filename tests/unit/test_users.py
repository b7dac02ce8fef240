"""USER of an image against its own passwd and group files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.users import MAX_FILE_BYTES, MAX_ID, User, resolve_user
from agent.errors import InvalidSpec

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# comment:x:1:1::/:
+::::::
+nss:x:2:2::/nss:
-nss:x:3:3::/nss:

app:x:1000:1001:App:/home/app:/bin/sh
app:x:1999:1999:a second one:/home/second:/bin/sh
same:x:1000:1002:of the same id:/home/same:/bin/sh
crlf:x:1100:1101::/home/crlf:/bin/sh\r
  blank:x:1200:1201::/home/blank:/bin/sh
gecos:x:1300:1301:line\x0bone\xc2\x85two:/home/gecos:/bin/sh
broken line
noid:x:abc:1::/:
nogid:x:1400::No group:/home/nogid:/bin/sh
threefields:x:1500
1234:x:77:77::/home/named-like-a-number:/bin/sh
huge:x:4294967294:0::/:
hugegid:x:1600:70000::/home/hugegid:
negative:x:-5:0::/:
short:x:5:6
relative:x:1700:1700::home/relative:/bin/sh
nohome:x:1800:1800:::
user with blanks:x:1900:1900::/home/blanks:
"""
GROUP = b"""root:x:0:
app:x:1001:
wheel:x:10:root,app
docker:x:999:app
again:x:10:app
bad:x:zz:app
hugegroup:x:70000:app
negativegroup:x:-1:app
2222:x:88:
+:::
nogroup:x:65534:
crlf:x:1101:blank\r
fields:x:300
"""


@pytest.mark.parametrize(
    ("user", "found"),
    [
        # names
        ("", User(0, 0, (10,), "/root")),
        ("root", User(0, 0, (10,), "/root")),
        ("app", User(1000, 1001, (10, 999), "/home/app")),
        ("same", User(1000, 1002, (), "/home/app")),
        ("crlf", User(1100, 1101, (), "/home/crlf")),
        ("blank", User(1200, 1201, (1101,), "/home/blank")),
        ("gecos", User(1300, 1301, (), "/home/gecos")),
        ("nogid", User(1400, 0, (), "/home/nogid")),
        ("threefields", User(1500, 0, (), "/")),
        ("short", User(5, 6, (), "/")),
        ("relative", User(1700, 1700, (), "/")),
        ("nohome", User(1800, 1800, (), "/")),
        ("user with blanks", User(1900, 1900, (), "/home/blanks")),
        (" app ", User(1000, 1001, (10, 999), "/home/app")),
        # numbers
        ("0", User(0, 0, (10,), "/root")),
        ("1000", User(1000, 1001, (10, 999), "/home/app")),
        ("+1000", User(1000, 1001, (10, 999), "/home/app")),
        ("01000", User(1000, 1001, (10, 999), "/home/app")),
        ("0" * 40 + "1000", User(1000, 1001, (10, 999), "/home/app")),
        ("1999", User(1999, 1999, (10, 999), "/home/second")),
        ("4000", User(4000, 0, (), "/")),
        ("1234", User(1234, 0, (), "/")),
        ("77", User(77, 77, (), "/home/named-like-a-number")),
        ("65535:65535", User(65535, 65535, (), "/")),
        # groups
        ("app:wheel", User(1000, 10, (), "/home/app")),
        ("app:5", User(1000, 5, (), "/home/app")),
        ("app:10", User(1000, 10, (), "/home/app")),
        ("app:2222", User(1000, 2222, (), "/home/app")),
        ("app:88", User(1000, 88, (), "/home/app")),
        ("app:fields", User(1000, 300, (), "/home/app")),
        ("app:", User(1000, 1001, (10, 999), "/home/app")),
        ("4000:", User(4000, 0, (), "/")),
        ("4000:nogroup", User(4000, 65534, (), "/")),
        ("4000:+5", User(4000, 5, (), "/")),
        (":wheel", User(0, 10, (), "/root")),
        (":5", User(0, 5, (), "/root")),
        (":", User(0, 0, (10,), "/root")),
        ("app:wheel:rest", User(1000, 10, (), "/home/app")),
    ],
)
def test_users_are_found_as_docker_finds_them(user, found):
    assert resolve_user(user, PASSWD, GROUP) == found


def test_an_image_without_accounts_knows_numbers_and_root():
    assert resolve_user("") == User()
    assert resolve_user("1000:1000") == User(1000, 1000)
    with pytest.raises(
        InvalidSpec, match="'app' cannot be looked up, the image has no /etc/passwd"
    ):
        resolve_user("app")
    with pytest.raises(InvalidSpec, match="'app' cannot be looked up, the image has no /etc/group"):
        resolve_user("0:app")


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("nobody", "user 'nobody' is not in the image's /etc/passwd"),
        ("app:nobody", "group 'nobody' is not in the image's /etc/group"),
        ("70000", "outside 0-65535"),
        ("-1", "outside 0-65535"),
        ("0:70000", "outside 0-65535"),
        ("0:-1", "outside 0-65535"),
        ("huge", "user 'huge' has an id outside"),
        ("negative", "user 'negative' has an id outside"),
        ("hugegid", "group of user 'hugegid' has an id outside"),
        ("0:hugegroup", "group 'hugegroup' has an id outside"),
        ("noid", "not in the image's"),
        ("broken line", "not in the image's"),
        ("0:bad", "not in the image's"),
        ("# comment", "not in the image's"),
        ("+", "not in the image's"),
        ("+nss", "not in the image's"),
        ("-nss", "not in the image's"),
        ("app :wheel", "user 'app ' is not in"),
        ("1_000", "not in the image's"),
        ("0x10", "not in the image's"),
        ("١", "not in the image's"),
        ("²", "not in the image's"),
    ],
)
def test_unknown_users_are_named(user, words):
    with pytest.raises(InvalidSpec) as error:
        resolve_user(user, PASSWD, GROUP)
    assert error.value.problems[0].field == "user"
    assert words in str(error.value)


def test_a_file_too_large_is_read_up_to_its_last_whole_line():
    entries = b"".join(b"user%d:x:%d:1::/:\n" % (n, n) for n in range(60000))
    assert len(entries) > MAX_FILE_BYTES
    assert resolve_user("user40000", entries).uid == 40000
    last = entries[:MAX_FILE_BYTES].rpartition(b"\n")[2].split(b":")[0].decode()
    with pytest.raises(InvalidSpec, match="not in the image's"):
        resolve_user(last, entries)


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


def test_who_is_too_far_down_is_told_so():
    many = b"u:x:1:1::/:\n" * (MAX_FILE_BYTES // 12 + 2) + b"app:x:2:2::/:\n"
    with pytest.raises(InvalidSpec, match=rf"as far as it is read \({MAX_FILE_BYTES} bytes\)"):
        resolve_user("app", many[: MAX_FILE_BYTES + 1])
    assert resolve_user("7", many[: MAX_FILE_BYTES + 1]).uid == 7
