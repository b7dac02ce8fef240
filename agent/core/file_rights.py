"""Capabilities on a file (capabilities(7)): which of them keep it from being executed.

A file whose effective bit is set can only be executed where all that it carries is within the
bounding set (security/capability.c, get_file_caps). Pure: the attribute's value comes in.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

ATTRIBUTE = "security.capability"
_EFFECTIVE = 1  # VFS_CAP_FLAGS_EFFECTIVE
_NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)


def out_of_reach(value: bytes, bounding: Collection[str]) -> tuple[str, ...]:
    """Return the capabilities in the attribute that forbid an exec under `bounding`."""
    if len(value) < 12:
        return ()
    magic, low = struct.unpack_from("<II", value)
    high = struct.unpack_from("<I", value, 12)[0] if len(value) >= 20 else 0
    if not magic & _EFFECTIVE:
        return ()
    permitted = high << 32 | low
    carried = [f"CAP_{name}" for bit, name in enumerate(_NAMES) if permitted >> bit & 1]
    return tuple(name for name in carried if name not in bounding)
