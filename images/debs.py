"""Takes trees out of Debian packages that are not installed: downloaded by apt, unpacked here.

apt resolves against an empty host, with lists and archives of our own below `.cache/apt`, from the
host's own sources; nothing is installed, no maintainer script runs, no root is needed. The lists
are fetched once, and again when a package is no longer where they say. `software.py` makes layers
of the trees, and by hand what maintainer scripts would have done.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from debian import Missing, Tree
from ociarchive import Directory, File, Link, write_whole

PLACE = Path(__file__).resolve().parent / ".cache" / "apt"
ARCHIVES = PLACE / "cache" / "archives"

# What apt takes for installed: administration that no container runs, and what hangs on to it.
# gyp compiles add-ons in C; the others come with npm's libraries and are never loaded.
ABSENT = (
    *("adduser", "ca-certificates", "ca-certificates-java", "debconf", "dpkg", "fontconfig-config"),
    *("init-system-helpers", "iproute2", "java-common", "libavahi-client3", "libcups2"),
    *("libdbus-1-3", "libjpeg62-turbo", "libpcsclite1", "login", "lsb-base", "openssl", "passwd"),
    *("perl", "perl-base", "procps", "sysvinit-utils", "tar", "ucf", "util-linux"),
    *("eslint", "gyp", "libnode-dev", "node-babel7", "webpack"),
)
LEFT_OUT = tuple(
    f"usr/share/{name}/"
    for name in ("bug", "doc", "doc-base", "icons", "info", "lintian", "locale", "man", "pixmaps")
)
# Of the host, where a program runs in a tree: how to reach a registry, and whom to trust there.
SHOWN = ("/dev", "/proc", "/etc/hosts", "/etc/resolv.conf", "/etc/ssl", "/etc/npmrc")
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def closure(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the file names of these packages and all that they depend on; versions are in them."""
    with _alone():
        return _resolved(names)


def tree(names: tuple[str, ...], below: tuple[str, ...] = ()) -> Tree:
    """Return the files of the packages and all that they depend on, less those that `below` has."""
    with _alone():
        wanted = _above(names, below)
        if not all((ARCHIVES / each).exists() for each in wanted):
            _asked("--download-only", "-y", "install", *names)
            wanted = _above(names, below)  # the lists may be new
        found: Tree = {}
        for package in wanted:
            found |= _unpacked(ARCHIVES / package)
    return found


def _above(names: tuple[str, ...], below: tuple[str, ...]) -> list[str]:
    present = _resolved(below) if below else ()
    return [each for each in _resolved(names) if each not in present]


def _resolved(names: tuple[str, ...]) -> tuple[str, ...]:
    """Ask apt once for each state of the lists: it takes a second."""
    lists = sorted((path.name, path.stat().st_mtime_ns) for path in (PLACE / "lists").glob("*_*"))
    key = hashlib.sha256(repr((names, ABSENT, lists)).encode()).hexdigest()[:16]
    kept = PLACE / f"closure-{key}"
    if not kept.exists():
        # It would leave out what it has downloaded.
        elsewhere = f"-oDir::Cache::archives={PLACE / 'none'}"
        printed = _asked(elsewhere, "--print-uris", "install", *names).splitlines()
        found = sorted(line.split()[1] for line in printed if line.startswith("'"))
        write_whole(kept, "\n".join(found).encode())
    return tuple(kept.read_text().splitlines())


def run_inside(what: Tree, place: Path, command: list[str], directory: str = "/") -> None:
    """Write a tree to `place` and run a command of it there, with the host's network and settings.

    Programs find their parts by absolute paths, so the tree is their root, in a mount namespace of
    their own; `directory` is relative to that root. Raises Missing when the command fails.
    """
    _write(what, place)
    script = ""
    for shown in (*map(Path, SHOWN), Path.home()):
        if not shown.exists():
            continue
        target = place / str(shown).lstrip("/")
        if shown.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.touch()
        script += f"mount --rbind {shlex.quote(str(shown))} {shlex.quote(str(target))}; "
    script += 'exec chroot "$0" sh -c \'cd "$0" && exec "$@"\' "$@"'
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *namespaces, "sh", "-ec", script, str(place), directory, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing")[-400:]
        raise Missing(f"{' '.join(command[:2])} failed: {said}")


def _write(what: Tree, place: Path) -> None:
    for path, entry in what.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        assert target.parent.resolve().is_relative_to(place.resolve()), f"{path} leads out"
        if isinstance(entry, Directory):
            target.mkdir(exist_ok=True)
        elif isinstance(entry, Link):
            target.symlink_to(entry.target)
        else:
            target.write_bytes(entry.data)
            target.chmod(entry.mode & 0o777)


def _unpacked(package: Path) -> Tree:
    """Return the files of one package where they lie on a host whose /bin is a link into /usr."""
    done = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=False
    )
    if done.returncode:
        raise Missing(f"{package.name} cannot be read: remove {package} and run again")
    found: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        for member in tar:
            path = _inside(member.name)
            if path and not f"{path}/".startswith(LEFT_OUT):
                found[path] = _entry(tar, member)
    return found


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> File | Link | Directory:
    mode, uid, gid = member.mode & 0o7777, member.uid, member.gid
    if member.isdir():
        return Directory(mode, uid, gid)
    if member.issym():
        return Link(member.linkname)
    # A hard link becomes a file of its own.
    data = tar.extractfile(member)
    assert data is not None, f"{member.name} is neither file, link nor directory"
    return File(data.read(), mode, uid, gid)


def _inside(name: str) -> str:
    path = PurePosixPath(name.lstrip("./"))
    return f"usr/{path}" if path.parts and path.parts[0] in MERGED else str(path).strip(".")


@contextmanager
def _alone() -> Iterator[None]:
    """Have the place to ourselves: apt refuses to work beside another apt."""
    (PLACE / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (PLACE / "none" / "partial").mkdir(parents=True, exist_ok=True)
    (ARCHIVES / "partial").mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (PLACE / "status").write_text("".join(map(_stanza, ABSENT)))
        if not any((PLACE / "lists").glob("*_Packages*")):
            _apt("update")
        yield


def _stanza(name: str) -> str:
    architectures = "allowed" if name == "perl" else "foreign"
    return (
        f"Package: {name}\nStatus: install ok installed\nMaintainer: nobody <nobody>\n"
        f"Architecture: amd64\nMulti-Arch: {architectures}\nVersion: 999:1\nDescription: absent\n\n"
    )


def _asked(*arguments: str) -> str:
    """Ask apt with the lists there are, and once more with new ones should it refuse."""
    try:
        return _apt(*arguments)
    except Missing:
        _apt("update")
        return _apt(*arguments)


def _apt(*arguments: str) -> str:
    options = {
        "Dir::State": PLACE,
        "Dir::State::status": PLACE / "status",
        "Dir::Cache": PLACE / "cache",
        "Dir::Cache::pkgcache": PLACE / "cache" / "pkgcache.bin",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Install-Recommends": "false",
        # What root's apt would become has no way into a checkout of root's.
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Missing(
            f"apt-get {' '.join(arguments)}: {reason}; "
            "check the network and the apt sources of this host, then run again"
        )
    return done.stdout
