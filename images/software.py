#!/usr/bin/env python3
"""Builds images of other people's software, laid out as the official images are, for the tests.

`python3 images/software.py [--out DIR] [NAME …]`: servers and a batch program from Debian packages
(`debs.py`), with wheels from the Python index (`wheels.py`) and packages from the npm registry
(`npm.py`), all as this host's apt, pip and npm are set up. What maintainer scripts and Dockerfiles
would do (links, users, owners, capabilities, logs to stdout) is written out here. `--lock` pins
npm's packages anew. Archives are cached as `build.py` says.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import build
import debian
import debs
import npm
import wheels
from build import HERE, Image, kept_layer
from ociarchive import Directory, File, Layer, Link, layer

MODULES = ("software.py", "debs.py")
BASE = (
    *("base-files", "base-passwd", "coreutils", "dash", "debianutils", "findutils"),
    *("gettext-base", "grep", "libc-bin", "mawk", "sed"),
)
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# VFS_CAP_REVISION_2 with the effective bit, CAP_NET_BIND_SERVICE permitted (capabilities(7)).
BIND_SERVICE = bytes.fromhex("01000002" + "00040000") + bytes(12)
WWW_DATA = 33
RUNTIME = ("default-jre-headless",)
COMPILER = "libeclipse-jdt-core-java"  # runs on that; a JDK has four times its size
LEVEL = 1  # of gzip: these layers are unpacked once and go over no wire


# -- layers


@cache
def base_tree() -> debian.Tree:
    """Return a small Debian with a shell, as its own scripts would leave it."""
    tree: debian.Tree = {name: Link(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")}
    tree |= debs.tree(BASE)
    for name in ("passwd", "group"):
        tree[f"etc/{name}"] = tree[f"usr/share/base-passwd/{name}.master"]
    tree |= {
        "etc/nsswitch.conf": debian.SKELETON["etc/nsswitch.conf"],
        "usr/bin/awk": Link("mawk"),
        "var/run": Link("/run"),
    }
    return tree


def text_of(*names: str) -> str:
    """Return the text of files beside this one."""
    return "\0".join((HERE / name).read_text() for name in names)


def base_layer() -> Layer:
    """Return the layer below all others."""
    parts = "\0".join((*debs.closure(BASE), text_of(*MODULES)))
    return kept_layer("debian", parts, lambda: layer(base_tree(), LEVEL))


def account(name: str, number: int) -> debian.Tree:
    """Return the base's user files with one more user, who has a home."""
    base = base_tree()
    passwd, group = base["etc/passwd"], base["etc/group"]
    assert isinstance(passwd, File)
    assert isinstance(group, File)
    line = f"{name}:x:{number}:{number}::/home/{name}:/bin/sh\n"
    return {
        "etc/passwd": File(passwd.data + line.encode()),
        "etc/group": File(group.data + f"{name}:x:{number}:\n".encode()),
        f"home/{name}": Directory(0o755, number, number),
    }


def software(
    name: str,
    packages: tuple[str, ...],
    above: Callable[[debian.Tree], debian.Tree],
    config: dict[str, Any],
    modules: tuple[str, ...] = (),
) -> Image:
    """Return an image of packages over the base; `above` makes the rest from their tree."""
    own = sorted(str(path.relative_to(HERE)) for path in (HERE / name).rglob("*") if path.is_file())
    sources = (*MODULES, *modules, *own)

    def closure() -> str:
        return "\n".join(debs.closure((*BASE, *packages)))

    def layers() -> list[Layer]:
        tree = debs.tree((*BASE, *packages), BASE)
        return [base_layer(), layer(tree | above(tree), LEVEL)]

    config = {"Env": [PATH], **config}
    return Image(name, sources, closure, layers, config)


def ours(source: str, mode: int = 0o644, uid: int = 0) -> File:
    """Return a file that stands beside this one."""
    return File((HERE / source).read_bytes(), mode, uid, uid)


# -- what each one is, beside its packages


def nginx(_: debian.Tree) -> debian.Tree:
    """Lay out the official image: an entrypoint that fills in templates, logs to stdout."""
    scripts = sorted((HERE / "nginx/docker-entrypoint.d").iterdir())
    tree: debian.Tree = {
        f"docker-entrypoint.d/{path.name}": ours(str(path.relative_to(HERE)), 0o755)
        for path in scripts
    }
    return tree | {
        "docker-entrypoint.sh": ours("nginx/docker-entrypoint.sh", 0o755),
        "etc/nginx/templates/default.conf.template": ours("nginx/templates/default.conf.template"),
        "usr/share/nginx/html/index.html": ours("nginx/index.html"),
        "var/log/nginx/access.log": Link("/dev/stdout"),
        "var/log/nginx/error.log": Link("/dev/stderr"),
        "var/lib/nginx": Directory(),
    }


def httpd(_: debian.Tree) -> debian.Tree:
    """Lay out the official image: everything below /usr/local/apache2, started in foreground."""
    root = "usr/local/apache2"
    return {
        "usr/local/bin/httpd-foreground": ours("httpd/httpd-foreground", 0o755),
        "usr/local/bin/httpd": Link("/usr/sbin/apache2"),
        f"{root}/conf/httpd.conf": ours("httpd/httpd.conf"),
        f"{root}/htdocs/index.html": ours("httpd/index.html"),
        f"{root}/cgi-bin/echo": ours("httpd/echo.sh", 0o755),
        f"{root}/logs": Directory(0o1777),
        "etc/mime.types": File(b"text/html html\n"),
    }


def caddy(tree: debian.Tree) -> debian.Tree:
    """Lay out the official image: the capability on the binary lets any user bind port 80."""
    binary = tree["usr/bin/caddy"]
    assert isinstance(binary, File)
    found: debian.Tree = {
        "usr/bin/caddy": File(binary.data, 0o755, capabilities=BIND_SERVICE),
        "etc/caddy/Caddyfile": ours("caddy/Caddyfile"),
        "config/caddy": Directory(0o1777),
        "data/caddy": Directory(0o1777),
        "srv": Directory(),
    }
    return found | account("web", 1000)


def express(tree: debian.Tree) -> debian.Tree:
    """Lay out the official image: npm beside node, the application in the home of `node`."""
    found: debian.Tree = {
        f"home/node/app/{path}": entry
        for path, entry in npm.modules(HERE / "express", base_tree() | tree).items()
    }
    names = ("package.json", "package-lock.json", "server.js")
    found |= {f"home/node/app/{name}": ours(f"express/{name}", uid=1000) for name in names}
    found["usr/local/bin/docker-entrypoint.sh"] = ours("express/docker-entrypoint.sh", 0o755)
    return found | account("node", 1000)


def python(name: str, module: str, config: dict[str, Any]) -> Image:
    """Return an image of locked wheels over Debian's Python; the layer of that is shared."""
    lock = f"{name}/requirements.lock"

    def closure() -> str:
        return "\n".join(debs.closure((*BASE, "python3")))

    def interpreter() -> Layer:
        tree = debs.tree((*BASE, "python3"), BASE)
        version = debian.python_version()
        return layer(tree | debian.compiled(tree, f"usr/lib/python{version}/"), LEVEL)

    def layers() -> list[Layer]:
        shared = kept_layer("debian-python", closure() + text_of(*MODULES), interpreter)
        own = wheels.tree(HERE / lock, debian.python_version())
        own |= {f"app/{module}": ours(f"{name}/{module}")} | account("app", 1000)
        return [base_layer(), shared, layer(own, LEVEL)]

    sources = (*MODULES, "wheels.py", lock, f"{name}/{module}")
    return Image(name, sources, closure, layers, {"WorkingDir": "/app", **config})


def java(tree: debian.Tree) -> debian.Tree:
    """Compile the server with the image's own Java; the compiler does not go into the image."""
    jvm = "usr/lib/jvm/"
    (binary,) = (path for path in tree if path.startswith(jvm) and path.endswith("/bin/java"))
    found: debian.Tree = {"usr/bin/java": Link(f"/{binary}")}
    whole = base_tree() | tree | debs.tree((COMPILER,), RUNTIME) | found
    whole["app/Server.java"] = ours("java/Server.java")
    # All of them: what the compiler is split into differs by release.
    command = ["java", "-cp", "/usr/share/java/*"]
    command += ["org.eclipse.jdt.internal.compiler.batch.Main", "-proc:none"]
    command += ["-17", "/app/Server.java"]
    with tempfile.TemporaryDirectory(prefix="kindling-images-") as place:
        debs.run_inside(whole, Path(place), command)
        return found | {
            f"app/{path.name}": File(path.read_bytes()) for path in Path(place).glob("app/*.class")
        }


def nats(_: debian.Tree) -> debian.Tree:
    """Nothing but the program: its monitoring door speaks HTTP."""
    return {}


def php(tree: debian.Tree) -> debian.Tree:
    """Link the command and switch on what the packages bring, as their scripts do."""
    (binary,) = (path for path in tree if path.startswith("usr/bin/php") and path[-1].isdigit())
    return {"usr/bin/php": Link(Path(binary).name), "app/index.php": ours("php/index.php")}


def sqlite(_: debian.Tree) -> debian.Tree:
    """Add the job, and the place of its database."""
    return {
        "usr/local/bin/report": ours("sqlite/report.sh", 0o755),
        "var/lib/report": Directory(0o755, WWW_DATA, WWW_DATA),
    }


IMAGES = (
    software(
        "nginx",
        ("nginx-light",),
        nginx,
        {
            "Env": [PATH, "NGINX_PORT=80"],
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["nginx", "-g", "daemon off;"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT",
        },
    ),
    software(
        "httpd",
        ("apache2-bin",),
        httpd,
        {
            "Env": [PATH, "HTTPD_PREFIX=/usr/local/apache2", "HTTPD_PORT=80"],
            "Cmd": ["httpd-foreground", "-f", "conf/httpd.conf", "-d", "/usr/local/apache2"],
            "WorkingDir": "/usr/local/apache2",
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGWINCH",
        },
    ),
    software(
        "caddy",
        ("caddy",),
        caddy,
        {
            "Env": [PATH, "XDG_CONFIG_HOME=/config", "XDG_DATA_HOME=/data"],
            "Cmd": ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"],
            "User": "web",
            "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "443/udp": {}, "2019/tcp": {}},
        },
    ),
    software(
        "express",
        npm.PACKAGES,
        express,
        {
            "Env": [PATH, "NODE_ENV=production"],
            "Entrypoint": ["docker-entrypoint.sh"],
            "Cmd": ["npm", "start"],
            "User": "node",
            "WorkingDir": "/home/node/app",
        },
        ("npm.py",),
    ),
    python(
        "flask",
        "shop.py",
        {
            "Env": [PATH, "LANG=C.UTF-8", "WEB_CONCURRENCY=2"],
            "Cmd": [
                *("gunicorn", "--worker-tmp-dir", "/dev/shm", "--access-logfile", "-"),
                *("--bind", "0.0.0.0:9000", "shop:app"),
            ],
            "User": "app",
            "ExposedPorts": {"9000/tcp": {}},
        },
    ),
    python(
        "fastapi",
        "items.py",
        {
            "Env": [PATH, "LANG=C.UTF-8"],
            "Cmd": ["sh", "-c", "uvicorn items:app --host 0.0.0.0 --port $FC_CUSTOM_LISTEN_PORT"],
        },
    ),
    software(
        "java",
        RUNTIME,
        java,
        {"Cmd": ["java", "Server"], "WorkingDir": "/app", "User": "nobody"},
    ),
    software(
        "nats",
        ("nats-server",),
        nats,
        {"Entrypoint": ["nats-server"], "Cmd": ["-D", "-m", "9000"], "User": "1000:1000"},
    ),
    software(
        "php",
        ("php-cli",),
        php,
        {"Cmd": ["php", "-S", "0.0.0.0:9000", "index.php"], "WorkingDir": "/app"},
    ),
    software("sqlite", ("sqlite3",), sqlite, {"Cmd": ["report"], "User": "www-data"}),
)


def main() -> int:
    """Build, or lock; returns the exit status."""
    if sys.argv[1:] == ["--lock"]:
        npm.lock(HERE / "express", base_tree() | debs.tree((*BASE, *npm.PACKAGES), BASE))
        return 0
    return build.main(IMAGES, "images of other people's software")


if __name__ == "__main__":
    sys.exit(main())
