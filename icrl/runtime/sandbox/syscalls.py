"""What a locked child may ask the kernel, by architecture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from icrl.errors import SandboxError, nearest

__all__ = ["ARCHITECTURES", "CONDITIONAL", "FREE", "Architecture", "current"]

# name, x86-64 number, aarch64 number; `-` where an architecture has no such call. Sources: the kernel's
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
_FREE = """
read 0 63           write 1 64          readv 19 65         writev 20 66        pread64 17 67
preadv 295 69       close 3 57          lseek 8 62          fstat 5 80          stat 4 -
lstat 6 -           newfstatat 262 79   statx 332 291       access 21 -         faccessat 269 48
faccessat2 439 439  readlink 89 -       readlinkat 267 78   getdents64 217 61   getcwd 79 17
munmap 11 215       mremap 25 216       madvise 28 233      brk 12 214          rt_sigaction 13 134
rt_sigprocmask 14 135                   rt_sigreturn 15 139 sigaltstack 131 132 restart_syscall 219 128
futex 202 98        nanosleep 35 101    clock_nanosleep 230 115                 clock_gettime 228 113
clock_getres 229 114                    gettimeofday 96 169 time 201 -          getrandom 318 278
sched_yield 24 124  sched_getaffinity 204 123               poll 7 -            ppoll 271 73
select 23 -         pselect6 270 72     getpid 39 172       gettid 186 178      getppid 110 173
getuid 102 174      geteuid 107 175     getgid 104 176      getegid 108 177     getresuid 118 148
getresgid 120 150   getpgrp 111 -       getpgid 121 155     getsid 124 156      uname 63 160
sysinfo 99 179      getrusage 98 165    times 100 153       getcpu 309 168      getrlimit 97 163
exit 60 93          exit_group 231 94
"""
_CONDITIONAL = """
open 2 -   openat 257 56   mmap 9 222   mprotect 10 226   fcntl 72 25   ioctl 16 29   prctl 157 167   prlimit64 302 261
"""
# What locking itself and the probes need a number for.
_NAMED = """
fork 57 -              clone 56 220         execve 59 221         socket 41 198        kill 62 129
ptrace 101 117         capset 126 91        seccomp 317 277       io_uring_setup 425 425
memfd_create 319 279   userfaultfd 323 282  landlock_create_ruleset 444 444
landlock_add_rule 445 445                   landlock_restrict_self 446 446
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A processor architecture as the kernel's filters see it.

    Example:
        >>> ARCHITECTURES["aarch64"].numbers["openat"]
        56
    """

    name: str
    """What `uname -m` says."""
    audit: int
    """The `AUDIT_ARCH` value that a filter compares with."""
    numbers: Mapping[str, int]
    """System call numbers by name."""
    foreign_bit: int | None = None
    """A bit in the number that marks calls of a second interface (x32), which has no place here."""


def _column(table: str, column: int) -> dict[str, int]:
    words = table.split()
    rows = zip(words[::3], words[column::3], strict=True)
    return {name: int(number) for name, number in rows if number != "-"}


def _numbers(column: int) -> dict[str, int]:
    return {**_column(_FREE, column), **_column(_CONDITIONAL, column), **_column(_NAMED, column)}


FREE: tuple[str, ...] = tuple(_FREE.split()[::3])
"""Calls that a locked child may make with any arguments."""
CONDITIONAL: tuple[str, ...] = tuple(_CONDITIONAL.split()[::3])
"""Calls whose arguments decide."""
ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(name="x86_64", audit=0xC000003E, numbers=_numbers(1), foreign_bit=0x40000000),
    "aarch64": Architecture(name="aarch64", audit=0xC00000B7, numbers=_numbers(2)),
}


def current(machine: str | None = None) -> Architecture:
    """Return the architecture of this machine, or of the named one.

    Raises:
        SandboxError: There is no table for it.

    Example:
        >>> current("riscv64")
        Traceback (most recent call last):
        icrl.errors.SandboxError: no system call table for 'riscv64': the sandbox runs on x86_64 and aarch64
    """
    machine = os.uname().machine if machine is None else machine
    if machine not in ARCHITECTURES:
        hint = nearest(machine, ARCHITECTURES)
        raise SandboxError(
            f"no system call table for {machine!r}: the sandbox runs on {' and '.join(ARCHITECTURES)}{hint}"
        )
    return ARCHITECTURES[machine]
