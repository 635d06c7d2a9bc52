"""The filter as a program: run by a small machine of our own, for architectures that are not at hand too."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from icrl.errors import SandboxError
from icrl.runtime.sandbox.seccomp import build_filter
from icrl.runtime.sandbox.syscalls import ARCHITECTURES, CONDITIONAL, FREE, Architecture, current

ALLOW, KILL, EPERM, ENOTTY = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050019


def verdict(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Run a classic BPF program over a `struct seccomp_data`."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, audit, 0, *(a & 0xFFFFFFFFFFFFFFFF for a in padded))
    steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, constant = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == 0x06:
            return constant
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: accumulator & constant}[code]
            at += if_true if holds else if_false


def ask(architecture: Architecture, name: str, *arguments: int) -> int:
    return verdict(build_filter(architecture), architecture.audit, architecture.numbers[name], *arguments)


both = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)


@both
def test_only_listed_numbers_pass(architecture):
    program = build_filter(architecture)
    numbers = architecture.numbers
    free = {numbers[name] for name in FREE if name in numbers}
    conditional = {numbers[name] for name in CONDITIONAL if name in numbers}
    for number in set(range(600)) - conditional:
        assert verdict(program, architecture.audit, number) == (ALLOW if number in free else EPERM), number
    for name in ("fork", "clone", "execve", "socket", "kill", "ptrace", "io_uring_setup", "memfd_create", "capset"):
        if name in numbers:
            assert numbers[name] not in free | conditional


@given(audit=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1))
def test_foreign_architectures_are_killed(audit, number):
    for architecture in ARCHITECTURES.values():
        if audit != architecture.audit:
            assert verdict(build_filter(architecture), audit, number) == KILL


def test_the_second_interface_is_killed():
    architecture = ARCHITECTURES["x86_64"]
    for number in (0, 1, 39, 2**30):
        assert verdict(build_filter(architecture), architecture.audit, 0x40000000 | number) == KILL


@both
@given(flags=st.integers(0, 2**31 - 1))
def test_files_open_for_reading_only(architecture, flags):
    writing = flags & (0o3 | 0o100 | 0o1000 | 0o10000000 | 0o20000000)
    assert ask(architecture, "openat", 0, 0, flags) == (EPERM if writing else ALLOW)


@both
@given(protection=st.integers(0, 7), flags=st.integers(0, 2**18 - 1))
def test_code_comes_from_files(architecture, protection, flags):
    write, execute, anonymous = protection & 2, protection & 4, flags & 0x20
    assert ask(architecture, "mmap", 0, 0, protection, flags) == (EPERM if execute and (write or anonymous) else ALLOW)
    assert ask(architecture, "mprotect", 0, 0, protection) == (EPERM if execute else ALLOW)


@both
@given(process=st.integers(0, 2**22), pointer=st.integers(0, 2**64 - 1))
def test_limits_can_be_read_by_their_owner(architecture, process, pointer):
    expected = ALLOW if process == 0 and pointer == 0 else EPERM
    assert ask(architecture, "prlimit64", process, 7, pointer) == expected


@both
@given(value=st.integers(0, 2**32 - 1))
def test_descriptors_and_process_properties(architecture, value):
    assert ask(architecture, "fcntl", 3, value) == (ALLOW if value in (0, 1, 2, 3, 1030) else EPERM)
    assert ask(architecture, "prctl", value) == (ALLOW if value == 39 else EPERM)
    assert ask(architecture, "ioctl", 3, value) == ENOTTY


def test_numbers_of_the_second_table():
    numbers = ARCHITECTURES["aarch64"].numbers
    # From include/uapi/asm-generic/unistd.h, for calls whose neighbours would be harmful.
    known = {
             "openat": 56, "read": 63, "write": 64, "exit": 93, "exit_group": 94, "futex": 98, "kill": 129,
             "rt_sigreturn": 139, "getpid": 172, "brk": 214, "munmap": 215, "mremap": 216, "clone": 220, "execve": 221,
             "mmap": 222, "mprotect": 226, "madvise": 233, "prlimit64": 261, "getrandom": 278, "statx": 291
    }  # fmt: skip
    assert {name: numbers[name] for name in known} == known
    assert not {"open", "stat", "fork", "access", "readlink", "poll", "select", "time"} & set(numbers)


@both
def test_no_number_is_listed_twice(architecture):
    assert len(set(architecture.numbers.values())) == len(architecture.numbers)


def test_an_unknown_architecture_is_refused_by_name():
    assert current("aarch64").audit == 0xC00000B7
    with pytest.raises(SandboxError, match=r"no system call table for 'x86-64'.* Did you mean 'x86_64'"):
        current("x86-64")
