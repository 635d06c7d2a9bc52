"""Hostile programs that ask the kernel: files, sockets, processes, memory, `/proc`."""
# ruff: noqa: E501

from __future__ import annotations

__all__ = ["CALLS"]

CALLS = {
    "read the secret": "print(open('@SECRET@').read())",
    "read it by descriptor": "import os\nprint(os.read(os.open('@SECRET@', 0), 100))",
    "read by openat": "import os\nd = os.open('/', os.O_RDONLY | os.O_DIRECTORY)\nprint(os.open('@SECRET@'[1:], 0, dir_fd=d))",
    "read by a path handle": "import os\nf = os.open('@SECRET@', os.O_PATH)\nprint(open(f'/proc/self/fd/{f}').read())",
    "list a directory": "import os\nprint(os.listdir('@TARGET@'))",
    "walk home": "import os\nprint([n for _, _, n in os.walk(os.path.expanduser('~'))], os.listdir('/root'))",
    "write a file": "open('@TARGET@/written', 'w').write('x')",
    "append to the secret": "open('@SECRET@', 'a').write('x')",
    "create an empty file": "import os\nos.close(os.open('@TARGET@/empty', os.O_CREAT | os.O_RDONLY))",
    "truncate": "import os\nos.truncate('@SECRET@', 0)",
    "unlink": "import os\nos.unlink('@SECRET@')",
    "rename": "import os\nos.rename('@SECRET@', '@TARGET@/renamed')",
    "hard link": "import os\nos.link('@SECRET@', '@TARGET@/linked')",
    "symlink": "import os\nos.symlink('@SECRET@', '@TARGET@/symlink')",
    "mkdir": "import os\nos.mkdir('@TARGET@/directory')",
    "mknod": "import os\nos.mkfifo('@TARGET@/fifo')",
    "chmod": "import os\nos.chmod('@SECRET@', 0o777)",
    "chown": "import os\nos.chown('@SECRET@', 1, 1)",
    "utime": "import os\nos.utime('@SECRET@', (0, 0))",
    "xattr": "import os\nos.setxattr('@SECRET@', 'user.x', b'1')",
    "own source": "import sys\nprint(open(sys.modules['icrl.runtime.sandbox.zygote'].__file__).read())",
    "poison a package": "import json\nopen(json.__file__, 'a').write('x')",
    "poison a cache": "import json, os\nopen(json.__cached__, 'wb').write(b'')",
    "proc environ": "print(open('/proc/self/environ').read(), open('/proc/1/environ').read())",
    "proc environ of the parent": "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())",
    "proc maps and mem": "print(open('/proc/self/maps').read())\nopen('/proc/self/mem', 'wb')",
    "proc root": "print(open('/proc/self/root@SECRET@').read())",
    "proc cwd of the server": "import os\nprint(os.listdir('/proc/@SERVER@/cwd'), os.readlink('/proc/@SERVER@/exe'))",
    "descriptors of the server": "import os\nprint(os.listdir('/proc/@SERVER@/fd'))",
    "every descriptor": """
import os
for fd in range(3, 4096):
    try:
        print(fd, os.readlink(f"/proc/self/fd/{fd}"), os.read(fd, 10) if fd > 3 else "")
    except OSError:
        pass
""",
    "environment": "import os\nprint(dict(os.environ))",
    "tcp connection": "import socket\nsocket.create_connection(('127.0.0.1', @PORT@), 1).send(b'x')",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))",
    "tcp server": "import socket\nsocket.create_server(('127.0.0.1', 0))\nprint('listening')",
    "raw socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "abstract unix socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0@ABSTRACT@')\ns.send(b'x')",
    "abstract unix datagram": "import socket\nsocket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0@ABSTRACT@')",
    "socket pair": "import socket\nprint(socket.socketpair())",
    "url": "import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=1).read())",
    "event loop": "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', @PORT@))",
    "conversation as a socket": "import socket, os\ns = socket.socket(fileno=3)\ns.sendmsg([b'x'], [(1, 1, b'\\x01\\0\\0\\0')])",
    "fork": "import os\npid = os.fork()\nif pid == 0:\n    open('@TARGET@/forked', 'w')",
    "vfork and exec": "import os\nos.posix_spawn('/bin/touch', ['touch', '@TARGET@/spawned'], {})",
    "exec": "import os\nos.execv('/bin/touch', ['touch', '@TARGET@/executed'])",
    "thread": "import threading\nt = threading.Thread(target=print, args=('thread',))\nt.start(); t.join()",
    "kill the victim": "import os\nos.kill(@VICTIM@, 9)",
    "terminate the victim": "import signal\nsignal.pidfd_send_signal(__import__('os').pidfd_open(@VICTIM@), 15)",
    "kill the zygote": "import os\nos.kill(os.getppid(), 9)",
    "kill everything": "import os\nos.kill(-1, 18)",
    "kill the group": "import os\nos.killpg(0, 9)\nos.killpg(os.getpgid(@VICTIM@), 9)",
    "tgkill": "import ctypes\nprint(ctypes.CDLL(None).syscall(234, @VICTIM@, @VICTIM@, 9))",
    "owner of a descriptor": """
import fcntl, os
fcntl.fcntl(3, fcntl.F_SETOWN, @VICTIM@)
fcntl.fcntl(3, 10, 9)
fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) | os.O_ASYNC)
""",
    "signal by a timer": "import ctypes\nprint(ctypes.CDLL(None).syscall(222, 0, 0, 0))",
    "signal by terminal": "import fcntl, termios\nfcntl.ioctl(3, 0x8902, b'\\0\\0\\0\\0')\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "ptrace the victim": "import ctypes\nprint(ctypes.CDLL(None).ptrace(16, @VICTIM@, 0, 0))",
    "ptrace the zygote": "import ctypes, os\nprint(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))",
    "memory of the server": """
import ctypes
class V(ctypes.Structure):
    _fields_ = [("b", ctypes.c_void_p), ("n", ctypes.c_size_t)]
b = ctypes.create_string_buffer(64)
print(ctypes.CDLL(None).process_vm_readv(@SERVER@, ctypes.byref(V(ctypes.addressof(b), 64)), 1, ctypes.byref(V(0x400000, 64)), 1, 0))
""",
    "io_uring": "import ctypes\nb = ctypes.create_string_buffer(256)\nprint(ctypes.CDLL(None).syscall(425, 8, b))",
    "openat2": """
import ctypes, struct
print(ctypes.CDLL(None).syscall(437, -100, b"@TARGET@/openat2", struct.pack("QQQ", 0o101, 0o600, 0), 24))
""",
    "creat by number": "import ctypes\nprint(ctypes.CDLL(None).syscall(85, b'@TARGET@/creat', 0o600))",
    "foreign call": "import ctypes\nprint(ctypes.CDLL(None).syscall(0x40000000 + 2, b'@TARGET@/x32', 0o101, 0o600))",
    "memfd and fexecve": "import os\nf = os.memfd_create('x')\nos.write(f, open('/bin/touch', 'rb').read())\nos.execve(f, ['t', '@TARGET@/m'], {})",
    "machine code": """
import mmap, ctypes
m = mmap.mmap(-1, 4096, prot=7)
m.write(b"\\x48\\x31\\xc0\\xb0\\x39\\x0f\\x05\\xc3")
print(ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())
""",
    "executable heap": """
import ctypes
b = ctypes.create_string_buffer(8192)
p = (ctypes.addressof(b) + 4095) & ~4095
print(ctypes.CDLL(None).mprotect(ctypes.c_void_p(p), 4096, 7), ctypes.CDLL(None).mprotect(ctypes.c_void_p(p), 4096, 5))
""",
    "user namespace": "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000 | 0x20000))",
    "mount": "import ctypes\nprint(ctypes.CDLL(None).mount(b'none', b'@TARGET@', b'tmpfs', 0, None))",
    "chroot": "import os\nos.chroot('@TARGET@')",
    "become somebody": "import os\nos.setuid(0)\nos.setgid(0)",
    "raise the limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nb = bytearray(4 << 30)",
    "limits of the zygote": "import resource, os\nprint(resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0)))",
    "priority": "import os\nos.setpriority(os.PRIO_PROCESS, @VICTIM@, 19)",
    "affinity": "import os\nos.sched_setaffinity(@VICTIM@, {0})",
    "shared memory": "import ctypes\nprint(ctypes.CDLL(None).shmget(1234, 4096, 0o1600))",
    "message queue": "import ctypes\nprint(ctypes.CDLL(None).syscall(68, 1234, 0o1600))",
    "keyring": "import ctypes\nprint(ctypes.CDLL(None).syscall(248, b'user', b'x', b'y', 1, -3))",
    "bpf": "import ctypes\nprint(ctypes.CDLL(None).syscall(321, 0, b'\\0' * 64, 64))",
    "perf": "import ctypes\nprint(ctypes.CDLL(None).syscall(298, b'\\0' * 112, 0, -1, -1, 0))",
    "inotify": "import ctypes\nprint(ctypes.CDLL(None).inotify_init())",
    "reboot": "import ctypes\nprint(ctypes.CDLL(None).syscall(169, 0xfee1dead, 672274793, 0, 0))",
    "clock": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)",
    "hostname": "import socket\nsocket.sethostname('pwned')",
    "forged result": """
import json, os
line = {"run": 1, "status": "ok", "value": "@SECRET@", "error": None, "truncated": False, "cpu_s": 0, "max_rss_mb": 0}
os.write(3, json.dumps(line).encode() + b"\\n")
""",
    "forged garbage": "import os\nos.write(3, b'\\xff\\xfe{' * 100 + b'\\n')",
    "forged lock failure": 'import os\nos.write(3, b\'{"reason": "x"}\\n\')\nos.kill(os.getpid(), 10)\nos._exit(0)',
    "pending import": "import sys\nsys.path.insert(0, '@TARGET@')\nimport payload",
    "exit hook": "import atexit\natexit.register(lambda: open('@TARGET@/atexit', 'w'))",
    "audit hook": "import sys\nsys.addaudithook(print)\nprint(open('@SECRET@').read())",
    "trace function": "import sys\nsys.settrace(lambda *a: print(a[0].f_back.f_globals['__builtins__']))\nlen('')",
    "crash": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "quiet exit": "import os\nos._exit(0)",
}
