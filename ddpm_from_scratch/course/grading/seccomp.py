"""A filter of system calls for the sandbox: one process, whatever the user's rights.

Limits on the number of processes do not bind root, and no limit counts memory that belongs to a file without a name.
So calls that make processes (threads are allowed), such memory, or further namespaces are refused.
"""

from __future__ import annotations

import platform
import struct

LOAD, EQUALS, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the classic packet filter
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NOT_PERMITTED, NOT_IMPLEMENTED = 1, 38  # EPERM, ENOSYS
THREAD = 0x00010000  # CLONE_THREAD
FOREIGN_CALLS = 0x40000000  # the second set of numbers of x86_64

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435  # its flags lie in memory that a filter cannot see: refused, and the C library takes `clone`
REFUSED = {
    "fork": {"x86_64": 57},
    "vfork": {"x86_64": 58},
    "unshare": {"x86_64": 272, "aarch64": 97},
    "setns": {"x86_64": 308, "aarch64": 268},
    "mount": {"x86_64": 165, "aarch64": 40},
    "ptrace": {"x86_64": 101, "aarch64": 117},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "memfd_secret": {"x86_64": 447, "aarch64": 447},
    "shmget": {"x86_64": 29, "aarch64": 194},
    "mq_open": {"x86_64": 240, "aarch64": 180},
    "add_key": {"x86_64": 248, "aarch64": 217},
    "keyctl": {"x86_64": 250, "aarch64": 219},
    "bpf": {"x86_64": 321, "aarch64": 280},
    "perf_event_open": {"x86_64": 298, "aarch64": 241},
    "userfaultfd": {"x86_64": 323, "aarch64": 282},
    "io_uring_setup": {"x86_64": 425, "aarch64": 425},
}


def program(machine: str = platform.machine()) -> bytes:
    """The filter, as bubblewrap takes it; empty for a machine whose numbers are not known here."""
    if machine not in MACHINES:
        return b""
    refuse, not_there = REFUSE | NOT_PERMITTED, REFUSE | NOT_IMPLEMENTED
    code = [(LOAD, 0, 0, MACHINE), (EQUALS, 1, 0, MACHINES[machine]), (RETURN, 0, 0, refuse), (LOAD, 0, 0, NUMBER)]
    if machine == "x86_64":
        code += [(AT_LEAST, 0, 1, FOREIGN_CALLS), (RETURN, 0, 0, refuse)]
    code += [(EQUALS, 0, 1, CLONE3), (RETURN, 0, 0, not_there)]
    for numbers in REFUSED.values():
        if machine in numbers:
            code += [(EQUALS, 0, 1, numbers[machine]), (RETURN, 0, 0, refuse)]
    code += [(EQUALS, 0, 3, CLONE[machine]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, THREAD)]
    code += [(RETURN, 0, 0, refuse), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
