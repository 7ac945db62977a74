"""What a process in a box may not ask of the kernel: a seccomp filter, assembled here.

Everything is allowed but a list: processes (threads are allowed), tracing others, mounts and namespaces, sockets,
memory that no limit counts, and the parts of the kernel most often broken out of. Sockets are refused because the
families that are not networks to a network namespace (vsock, netlink, crypto) stay reachable without one.
"""

from __future__ import annotations

import struct

DENIED = [
    "fork",
    "vfork",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "pidfd_getfd",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "unshare",
    "setns",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "move_mount",
    "open_tree",
    "mount_setattr",
    "open_by_handle_at",
    "socket",
    "memfd_create",
    "memfd_secret",
    "shmget",
    "shmat",
    "msgget",
    "semget",
    "mq_open",
    "bpf",
    "userfaultfd",
    "perf_event_open",
    "add_key",
    "request_key",
    "keyctl",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "init_module",
    "finit_module",
    "kexec_load",
    "kexec_file_load",
    "personality",
]

COMMON = {
    "pidfd_getfd": 438, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "move_mount": 429,
    "open_tree": 428, "mount_setattr": 442, "memfd_secret": 447, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427, "clone3": 435,
}  # fmt: skip
NUMBERS = {
    "x86_64": COMMON | {
        "fork": 57, "vfork": 58, "clone": 56, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
        "open_by_handle_at": 304, "socket": 41, "memfd_create": 319, "shmget": 29, "shmat": 30, "msgget": 68,
        "semget": 64, "mq_open": 240, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "add_key": 248,
        "request_key": 249, "keyctl": 250, "init_module": 175, "finit_module": 313, "kexec_load": 246,
        "kexec_file_load": 320, "personality": 135,
    },
    "aarch64": COMMON | {
        "clone": 220, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "mount": 40, "umount2": 39,
        "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268, "open_by_handle_at": 265, "socket": 198,
        "memfd_create": 279, "shmget": 194, "shmat": 196, "msgget": 186, "semget": 190, "mq_open": 180, "bpf": 280,
        "userfaultfd": 282, "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219,
        "init_module": 105, "finit_module": 273, "kexec_load": 104, "kexec_file_load": 294, "personality": 92,
    },
}  # fmt: skip
"""The system call numbers of each machine; a name missing from a machine's table does not exist there."""

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32 = 0x40000000
CLONE_THREAD = 0x00010000
EPERM, ENOSYS = 1, 38

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
"""The codes of the Berkeley packet filter: load a word of the call, three conditional jumps, return."""

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16


def filter_for(machine: str) -> bytes:
    """Return the filter as `bwrap --seccomp` reads it. Raises KeyError for a machine whose calls are not in
    the table.
    """
    numbers = NUMBERS[machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, AUDIT[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    code += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, REFUSE | EPERM)]
    for name in DENIED:
        if name in numbers:
            code += [(EQUAL, 0, 1, numbers[name]), (RETURN, 0, 0, REFUSE | EPERM)]
    # clone3 hides its flags in memory, which a filter cannot read: unknown to it, the C library falls back to clone.
    code += [(EQUAL, 0, 1, numbers["clone3"]), (RETURN, 0, 0, REFUSE | ENOSYS)]
    code += [(EQUAL, 0, 3, numbers["clone"]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD)]
    code += [(RETURN, 0, 0, REFUSE | EPERM), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
