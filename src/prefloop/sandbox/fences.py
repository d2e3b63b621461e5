"""What an untrusted process is shut into. Linux; each fence raises OSError where the machine does not allow it.

Namespaces: no network, no other process to be seen, and for files an empty root with the interpreter's libraries, read-only.
Where they are not allowed, Landlock: the same files, or all of the user's where the kernel has none. Limits: time, memory,
sizes. A filter of system calls: no sockets, no new processes or threads, no signals.
"""

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 20
FOLDER_OPTIONS = b"size=16m,nr_inodes=4096,mode=755"
"""All files together, in the empty root."""
DESCRIPTORS = 64

# from the kernel's headers: linux/sched.h, sys/mount.h, linux/mount.h, linux/prctl.h, linux/capability.h
NEW_NAMESPACES = {"user": 1 << 28, "files": 1 << 17, "names": 1 << 26, "ipc": 1 << 27, "processes": 1 << 29,
                  "network": 1 << 30}  # fmt: skip
NOSUID, NODEV, BIND, RECURSIVELY = 2, 4, 1 << 12, 1 << 14
READ_ONLY_ATTRIBUTES = 1 | 2 | 4
"""Read-only, no set-user-id, no devices."""
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES, SECCOMP, SECCOMP_FILTER = 1, 38, 22, 2
CAPABILITY_VERSION = 0x20080522
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, PATH_BENEATH = 444, 445, 446, 1
READ_RIGHTS = 1 | 4 | 8
"""To execute, to read files and to list folders (linux/landlock.h)."""

FORBIDDEN = {
    # socket; fork, vfork, clone, execve, execveat; kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo; ptrace,
    # process_vm_readv, process_vm_writev, prlimit64; unshare, setns; shmget and msgget, whose memory no limit counts
    "x86_64": (
        0xC000003E,
        (41, 57, 58, 56, 59, 322, 62, 200, 234, 129, 297, 101, 310, 311, 302, 272, 308, 29, 68),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 220, 221, 281, 129, 130, 131, 138, 240, 117, 270, 271, 261, 97, 268, 194, 186),
    ),
}
"""Of each architecture, its audit number (linux/audit.h) and the calls that are refused."""
FORBIDDEN_EVERYWHERE = (424, 425, 434, 435, 438, 440)
"""pidfd_send_signal, io_uring_setup, pidfd_open, clone3, pidfd_getfd, process_madvise: one number on all architectures."""


def enter_namespaces() -> None:
    """Puts this process into new namespaces, and the processes that it starts from now on into a new one of processes."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", sum(NEW_NAMESPACES.values()))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(file, text.encode())
        os.close(file)


def enter_empty_root(root: str, libraries: Iterable[str]) -> None:
    """Makes an empty folder the root, with nothing but libraries in it; they are read-only and without packages."""
    _call("mount", b"tmpfs", root.encode(), b"tmpfs", NOSUID | NODEV, FOLDER_OPTIONS)
    for folder in libraries:
        place = Path(root + folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(folder).is_symlink():
            place.symlink_to(Path(folder).readlink())
            continue
        place.mkdir()
        _call("mount", folder.encode(), bytes(place), None, BIND | RECURSIVELY, None)
        # a package may hold the answers of the benchmark
        for packages in place.glob("python3*/*-packages"):
            _call("mount", b"tmpfs", bytes(packages), b"tmpfs", NOSUID | NODEV, b"size=4k")
        attributes = struct.pack("QQQQ", READ_ONLY_ATTRIBUTES, 0, 0, 0)
        _call("syscall", MOUNT_SETATTR, AT_FDCWD, bytes(place), AT_RECURSIVE, attributes, len(attributes))
    Path(root, "tmp").mkdir(exist_ok=True)  # an interpreter may lie there
    os.chroot(root)
    os.chdir("/tmp")


def restrict_files(folder: str, libraries: Iterable[str]) -> None:
    """Leaves this process one folder to write in and the libraries to read (Landlock, from Linux 5.13)."""
    version = _call("syscall", CREATE_RULESET, None, 0, 1)
    rights = (1 << 12 + min(version, 3)) - 1  # 13 in the first version, and one more in each of the next two
    rules = _call("syscall", CREATE_RULESET, struct.pack("Q", rights), 8, 0)
    for place, allowed in ((folder, rights), *((one, READ_RIGHTS) for one in libraries)):
        beneath = os.open(place, os.O_PATH)
        _call("syscall", ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", allowed, beneath), 0)
        os.close(beneath)
    _call("syscall", RESTRICT_SELF, rules, 0)
    os.close(rules)


def set_limits(cpu_seconds: int) -> None:
    """Bounds what this process uses."""
    for name, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),  # no more than this one; root is not bound by it, but by the filter
    ):
        resource.setrlimit(name, (most, most))


def drop_privileges() -> None:
    """Gives up all capabilities, in the namespaces too, for good."""
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("capset", struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))


def filter_system_calls() -> None:
    """Refuses, for good, the calls that reach the network or other processes. Nothing where their numbers are unknown."""
    if platform.machine() not in FORBIDDEN:
        return
    architecture, numbers = FORBIDDEN[platform.machine()]
    load, equal, above, answer = 0x20, 0x15, 0x35, 0x06
    refuse, kill, allow = 0x00050001, 0x80000000, 0x7FFF0000  # refused calls return EPERM
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    program += [(above, 0, 1, 1 << 30), (answer, 0, 0, refuse)]  # x86's second set of numbers
    for number in (*numbers, *FORBIDDEN_EVERYWHERE):
        program += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    program.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    head = struct.pack("HP", len(program), ctypes.addressof(code))
    _call("prctl", SECCOMP, SECCOMP_FILTER, head, 0, 0)


def die_with_parent(signal: int) -> None:
    """Has the kernel send this process a signal when the one that started it ends."""
    _call("prctl", PARENT_DEATH_SIGNAL, signal, 0, 0, 0)


def _call(name: str, *arguments: bytes | int | None) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    done = getattr(library, name)(*(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments))
    if done == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return done
