"""What all instances of one version have in common, worked out once: spec template, user, command.

Parsing the image's accounts and encoding a seccomp profile per start would block the loop; a start
only fills in the few values that differ (`SpecTemplate.encode`).
"""

from __future__ import annotations

import posixpath
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.config import NodeConfig
from agent.core import executables
from agent.core.init import command_of, handed_over, is_init
from agent.core.job import check_exec_sizes
from agent.core.oci import ShownCgroups, SpecTemplate, VersionPlan, argv_of, merged_env
from agent.core.rlimits import Rlimit, dumps_outside, rlimits
from agent.core.stop_signal import stop_signal_or_term
from agent.core.users import MAX_FILE_BYTES, resolve_user
from agent.linux import mountinfo
from agent.model.limits import LIMITS
from agent.model.records import FunctionVersion
from agent.model.spec import Init
from agent.rootless.installed import init_path
from agent.sandbox.diagnosis import Program
from agent.sandbox.furniture import Furniture, furniture_of
from agent.sandbox.image_files import UNREACHABLE, ImageFiles
from agent.sandbox.prepared_images import PreparedImage
from agent.storage.sysfs import HOST as HOST_SYSFS
from agent.storage.sysfs import source as sysfs_for
from agent.storage.volumes import resolve

SHM_BYTES = 64 << 20  # as container runtimes have it by default
MAX_SCRIPTS = 4  # how many scripts in a row are looked into for the init they end with
MAX_SCRIPT_BYTES = 64 << 10
FUNCTION_OOM_SCORE = 900  # functions go first when the host runs out of memory


# cgroup v1 counts swap only where the kernel was built and booted with it.
V1_MEMORY = Path("/sys/fs/cgroup/memory")


def limits_swap() -> bool:
    """Say whether this host's kernel lets swap be limited: always on cgroup v2."""
    return not V1_MEMORY.is_dir() or (V1_MEMORY / "memory.memsw.limit_in_bytes").exists()


def own_rlimits(files: int) -> tuple[Rlimit, ...]:
    """Return what a function's processes may have here: no more than this process itself."""
    settings = (Path("/proc/sys/kernel/core_pattern"), Path("/proc/sys/fs/suid_dumpable"))
    return rlimits(
        files,
        resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        resource.getrlimit(resource.RLIMIT_CORE)[1],
        outside=dumps_outside(*(path.read_text() for path in settings)),
    )


def mounted_in_sys(mounts: str) -> tuple[str, ...]:
    """Return what a host has mounted in its /sys, by the text of its mountinfo.

    systemd mounts debugfs, tracefs, securityfs, bpf and others there, and a bind of /sys brings
    them all along. No function has business with them; cgroups are covered in any case.
    """
    points = {mounted.point for mounted in mountinfo.parse(mounts)}
    below = (point for point in points if point.startswith("/sys/"))
    return tuple(sorted(point for point in below if not point.startswith("/sys/fs/cgroup")))


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One version, ready to be stamped out; `env` is the image's, with the user's HOME."""

    template: SpecTemplate
    image: PreparedImage
    furniture: Furniture
    env: tuple[str, ...]
    program: Program


def blueprint_of(
    version: FunctionVersion,
    image: PreparedImage,
    config: NodeConfig,
    annotations: Mapping[str, str],
    cgroups: ShownCgroups,
) -> Blueprint:
    """Work out a version's blueprint.

    Raises InvalidSpec when the image and the spec together give no command, or one too long, or
    name a user the image does not have, or a volume this node does not have; OSError when its
    layers cannot be read.
    """
    spec, facts = version.spec, image.facts
    argv = argv_of(facts.entrypoint, facts.cmd, spec.command, spec.args)
    environment = merged_env(facts.env, {}, spec.env)
    check_exec_sizes(argv, environment)
    sysfs = sysfs_for(config.paths.run)
    workdir, files = facts.workdir or "/", ImageFiles(image.layers)
    user = resolve_user(spec.user or facts.user, *accounts(files))
    binds = resolve(spec.mounts, config.volumes)
    program = Program(
        argv=argv,
        search=environment["PATH"],
        workdir=workdir,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        volumes=tuple(bind.target for bind in binds),
    )
    own = is_first_process(spec.init, program, files)
    plan = VersionPlan(
        argv=argv,
        cwd=workdir,
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        memory_bytes=spec.memory_bytes,
        cpu_millis=spec.cpu_millis,
        pids=spec.pids,
        rlimits=own_rlimits(LIMITS[spec.contract].fds),
        shm_bytes=min(SHM_BYTES, spec.memory_bytes // 2),
        init_path="" if own else str(init_path()),
        stop_signal=stop_signal_or_term(facts.stop_signal),
        oom_score_adj=FUNCTION_OOM_SCORE,
        binds=binds,
        limit_swap=limits_swap(),
        sysfs=sysfs,
        cgroups=cgroups,
        masked=mounted_in_sys(mountinfo.text()) if sysfs == HOST_SYSFS else (),
        annotations=annotations,
    )
    return Blueprint(
        template=SpecTemplate(plan),
        image=image,
        furniture=furniture_of(files, workdir, facts.volumes, mounted=program.volumes),
        # Like runtimes of Docker and podman: an empty HOME is none.
        env=(f"HOME={user.home}", *(line for line in facts.env if line != "HOME=")),
        program=program,
    )


def accounts(files: ImageFiles) -> tuple[bytes, bytes]:
    """Return the image's passwd and group files, b"" where there is none to read. Blocks.

    Looked at once per version and kept by nobody: an image may have megabytes of them.
    """
    passwd, group = (
        _text_of(path, files, MAX_FILE_BYTES + 1) for path in ("/etc/passwd", "/etc/group")
    )
    return passwd, group


def is_first_process(init: Init, program: Program, files: ImageFiles) -> bool:
    """Say whether the program itself is to be the first process, and not the node's init.

    Also when a link of the image leads to an init, or a script ends by executing one. Blocks.
    """
    if init != "auto":
        return init == "false"
    argv = list(program.argv)
    for _ in range(MAX_SCRIPTS):
        if is_init(argv, program.workdir):
            return True
        words = command_of(argv)
        path = _path_of(words[0] if words else "", program, files)
        if not path or is_init([path]):
            return bool(path)
        text = _text_of(path, files, MAX_SCRIPT_BYTES + 1)
        if len(text) > MAX_SCRIPT_BYTES:
            return False
        script = executables.script(text)
        if script is None or is_init([script.interpreter, *script.argument.split()]):
            return script is not None
        argv = handed_over(text.decode("utf-8", "replace"), words)
    return False


def _path_of(name: str, program: Program, files: ImageFiles) -> str:
    """Return where in the image a command leads, without links; "" when nowhere."""
    folders = [program.workdir] if "/" in name else program.search.split(":")
    for folder in folders if name else ():
        try:
            return files.resolve(posixpath.join("/", program.workdir, folder, name))
        except OSError as error:
            if error.errno in UNREACHABLE:
                raise
    return ""


def _text_of(path: str, files: ImageFiles, most: int) -> bytes:
    """Return a file's first bytes; b"" for one that cannot be read."""
    try:
        return files.read(path, most)
    except OSError as error:
        if error.errno in UNREACHABLE:
            raise
        return b""
