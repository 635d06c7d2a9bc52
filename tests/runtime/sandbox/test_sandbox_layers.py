"""Every layer does its own part: with all, no attempt succeeds; without one, exactly those that it alone stops do."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from runtime.sandbox.confinement import needs_layers
from runtime.sandbox.hostile_calls import CALLS

from icrl.errors import SandboxError
from icrl.runtime.sandbox import landlock, pool, seccomp
from icrl.runtime.sandbox.lock import LAYERS, Lock
from icrl.runtime.sandbox.probes import FATAL, PROBES
from icrl.runtime.sandbox.process import ZygoteProcess
from icrl.runtime.sandbox.sandbox import Sandbox
from icrl.runtime.sandbox.selftest import attempt
from icrl.runtime.sandbox.syscalls import CONDITIONAL, FREE, current

pytestmark = needs_layers


async def attempts(layers: tuple[str, ...]) -> dict[str, str]:
    box = Sandbox("light", "plain", layers=layers, allow_unsandboxed=True)
    zygote = await ZygoteProcess.start(box._setup("light"))
    try:
        assert set(zygote.layers) == set(layers)
        return await attempt(zygote)
    finally:
        await zygote.aclose()


async def test_with_all_layers_no_attempt_succeeds():
    assert await attempts(LAYERS) == {}
    assert len(PROBES) >= 10


@pytest.mark.skipif(
    os.geteuid() != 0, reason="without capabilities, a process that may gain privileges cannot lock itself"
)
@pytest.mark.parametrize("dropped", LAYERS)
async def test_without_a_layer_exactly_its_attempts_succeed(dropped):
    alone = {name for name, (layers, _) in PROBES.items() if layers == (dropped,)}
    assert alone, "every layer has an attempt that no other layer stops"
    found = await attempts(tuple(layer for layer in LAYERS if layer != dropped))
    if dropped == "seccomp" and current().foreign_bit is not None:
        assert found.pop(FATAL)
    assert set(found) == alone


async def test_without_any_layer_every_attempt_succeeds():
    found = await attempts(())
    assert set(PROBES) - set(found) == {"inheritance"}


async def test_it_refuses_to_run_when_an_attempt_succeeds(monkeypatch):
    async def leaky(zygote):
        raise SandboxError("its layers did not stop a locked child: fork: forked")

    monkeypatch.setattr(pool, "check", leaky)
    with pytest.raises(SandboxError, match=r"fork: forked.*allow_unsandboxed=True"):
        async with Sandbox("light", "plain"):
            pass
    with pytest.raises(SandboxError, match="fork: forked"):
        await Sandbox("light", "plain").run("1")


async def test_less_than_all_layers_have_to_be_asked_for(caplog):
    with pytest.raises(SandboxError, match="needs allow_unsandboxed=True"):
        Sandbox(layers=("rlimits",))
    async with Sandbox("light", "plain", layers=(), allow_unsandboxed=True) as box:
        assert (await box.run("import os\nlen(os.listdir('/')) > 0")).value == "True"
    assert "without full isolation" in caplog.text


def test_a_kernel_that_lacks_a_layer_is_refused_unless_told(monkeypatch):
    monkeypatch.setattr("icrl.runtime.sandbox.lock.supported", lambda architecture: 0)
    monkeypatch.setattr("icrl.runtime.sandbox.lock.has_filters", lambda: False)
    with pytest.raises(SandboxError, match="the kernel lacks landlock and seccomp"):
        Lock.prepare(LAYERS, [], partial=False)
    assert Lock.prepare(LAYERS, [], partial=True).layers == {"rlimits", "privileges"}


async def test_a_zygote_that_cannot_lock_says_what_to_do(monkeypatch):
    setup = Sandbox("light", "plain")._setup("light")
    wrong = setup.__class__(**{f: getattr(setup, f) for f in setup.__struct_fields__} | {"language": "icrl.errors:no"})
    with pytest.raises(SandboxError, match="could not start: AttributeError"):
        await ZygoteProcess.start(wrong)


async def test_a_child_that_cannot_lock_itself_runs_nothing(monkeypatch):
    # Without the empty set of capabilities, a process that is nobody may not restrict itself.
    monkeypatch.setattr("icrl.runtime.sandbox.process._BOOT", BROKEN_BOOT)
    with pytest.raises(SandboxError, match=r"could not be locked: OSError: \[Errno 7\] no"):
        async with Sandbox("light", "plain"):
            pass


BROKEN_BOOT = """
import json, os, socket, sys
control = socket.socket(fileno=3)
setup = json.loads(control.recv(1 << 20))
sys.path[:] = setup.pop("paths")
from icrl.runtime.sandbox import lock, zygote
def fail(program):
    raise OSError(7, "no")
lock.install_filter = fail
zygote.main(control, setup)
"""

# What the hostile programs do where nothing stops them: so much for the worth of their silence elsewhere.
REACH = {
    "read the secret": "secret",
    "write a file": "written",
    "create an empty file": "empty",
    "tcp connection": "tcp",
    "abstract unix socket": "abstract",
    "vfork and exec": "spawned",
    "kill the victim": "victim",
}


@pytest.fixture
def victim():
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


async def test_without_layers_the_hostile_programs_do_reach_the_host(tmp_path, victim):
    (tmp_path / "secret").write_text("canary")
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0icrl-{tmp_path}")
        abstract.listen()
        words = {
            "SECRET": tmp_path / "secret", "TARGET": tmp_path, "VICTIM": victim.pid,
            "PORT": tcp.getsockname()[1], "ABSTRACT": f"icrl-{tmp_path}",
        }  # fmt: skip
        async with Sandbox("light", "plain", layers=(), allow_unsandboxed=True) as box:
            printed = ""
            for name in REACH:
                code = CALLS[name]
                for word, value in words.items():
                    code = code.replace(f"@{word}@", str(value))
                printed += (await box.run(code + "\nimport time\ntime.sleep(0.1)")).stdout
        tcp.settimeout(5)
        abstract.settimeout(5)
        tcp.accept()[0].close()
        abstract.accept()[0].close()
        assert victim.wait() == -9
    assert "canary" in printed
    assert {path.name for path in tmp_path.iterdir()} >= {"written", "empty", "spawned"}


SWEEP = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for number in range(0, 480):
    if number not in SKIPPED:
        ctypes.set_errno(0)
        if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != EPERM:
            found[number] = ctypes.get_errno()
found
"""


async def test_every_call_that_is_not_listed_is_refused():
    architecture = current()
    listed = {architecture.numbers[name] for name in (*FREE, *CONDITIONAL) if name in architecture.numbers}
    exempt = {335, 336} if architecture.name == "x86_64" else set()  # the kernel exempts uretprobe and uprobe
    code = SWEEP.replace("SKIPPED", repr(listed | exempt)).replace("EPERM", str(errno.EPERM))
    async with Sandbox("light", "plain") as box:
        result = await box.run(code)
    assert (result.status, result.value) == ("ok", "{}")


async def test_a_foreign_call_ends_the_program():
    if current().foreign_bit is None:
        pytest.skip("this architecture has no foreign calls")
    async with Sandbox("light", "plain") as box:
        result = await box.run("import ctypes\nctypes.CDLL(None).syscall(0x40000000 + 39)")
    assert (result.status, result.error) == ("crashed", "the interpreter was ended by SIGSYS")


CONDITIONS = {
    "mapping code from a file": ("import _decimal, _bisect, array, zlib\n1", "ok"),
    "its own limits": ("import resource\nresource.getrlimit(resource.RLIMIT_AS)[0] >> 20", "ok"),
    "limits of others": ("import resource\nresource.prlimit(1, resource.RLIMIT_AS)", "error"),
    "write and execute": ("import mmap\nmmap.mmap(-1, 4096, prot=7)", "error"),
    "execute plain memory": ("import mmap\nmmap.mmap(-1, 4096, prot=5)", "error"),
    "change a file's flags": ("import fcntl\nfcntl.fcntl(3, fcntl.F_SETFL, 0)", "error"),
    "read a file's flags": ("import fcntl\nfcntl.fcntl(3, fcntl.F_GETFL) >= 0", "ok"),
    "terminal": ("import os\nos.isatty(0)", "ok"),
    "sleep": ("import time\ntime.sleep(0.001)\ntime.time() > 0", "ok"),
    "random bytes": ("import os\nlen(os.urandom(8))", "ok"),
    "import from the library": ("import cmd, wave, colorsys\ncmd.__name__", "ok"),
    "compile and import a package": ("import importlib\nimportlib.import_module('msgspec').__name__", "ok"),
}


async def test_what_arguments_decide():
    async with Sandbox("light", "plain") as box:
        ended = {name: (await box.run(code)).status for name, (code, _) in CONDITIONS.items()}
    assert ended == {name: status for name, (_, status) in CONDITIONS.items()}


def test_versions_of_landlock_are_asked_only_for_what_they_know(monkeypatch):
    asked = []

    def call(number, *arguments):
        asked.append(arguments)
        return 7

    monkeypatch.setattr(landlock, "call", call)
    for version in (1, 2, 3, 4, 5, 6, 9):
        landlock.build_ruleset(current(), ["/no/such/directory"], version)
    fields = [[int.from_bytes(a[0][i : i + 8], "little") for i in (0, 8, 16)] for a in asked]
    assert [f[0].bit_length() for f in fields] == [13, 14, 15, 15, 16, 16, 16]
    assert [f[1] for f in fields] == [0, 0, 0, 3, 3, 3, 3]
    assert [f[2] for f in fields] == [0, 0, 0, 0, 0, 3, 3]


def test_nothing_is_looked_up_once_the_lock_closes(monkeypatch):
    """Others found libc by running a program, which a locked process cannot: the filter is bytes before it starts."""
    lock = Lock.prepare(LAYERS, [], partial=False)
    calls = []
    monkeypatch.setattr(seccomp, "build_filter", lambda *a: calls.append(a))
    assert isinstance(lock.program, bytes)
    assert len(lock.program) > 500
    if lock.ruleset is not None:
        os.close(lock.ruleset)
    assert not calls
