"""Programs that want more than their share of time, memory or output."""
# ruff: noqa: E501

from __future__ import annotations

__all__ = ["BOMBS"]

BOMBS: dict[str, str] = {
    "endless loop": "while True: pass",
    "loop that swallows": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "loop that ignores signals": """
import signal
for n in range(1, 65):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "sleep": "import time\ntime.sleep(1000)",
    "wait for nothing": "import select\nselect.select([], [], [])",
    "read the conversation": "import os\nos.read(3, 1)",
    "power": "10 ** (10 ** 9)",
    "tower": "9 ** 9 ** 9",
    "big product": "import math\nmath.factorial(10 ** 8)",
    "digits of a big number": "import sys\nsys.set_int_max_str_digits(0)\nstr(3 ** 30_000_000)",
    "regular expression": "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
    "sum of a long range": "sum(range(10 ** 12))",
    "long range in a list": "list(range(10 ** 12))",
    "list": "[0] * 10 ** 10",
    "growing list": "x = []\nwhile True: x.append('x' * 10_000_000)",
    "growing string": "x = 'x'\nwhile True: x += x",
    "growing dict": "d = {}\nwhile True: d[len(d)] = [0] * 100",
    "bytes": "bytearray(10 ** 11)",
    "format width": "'%1000000000d' % 1",
    "f-string width": "f'{1:>{10 ** 10}}'",
    "join": "','.join(['x' * 1000] * 10 ** 8)",
    "power set": "import itertools\nlist(itertools.product(range(100), repeat=10))",
    "combinations": "import itertools\nsum(1 for _ in itertools.permutations(range(20)))",
    "print flood": "while True: print('x' * 1000)",
    "single print": "print('x' * 10_000_000)",
    "error flood": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "raw flood": "import os\nwhile True: os.write(1, b'x' * 1000)",
    "conversation flood": "import os\nwhile True: os.write(3, b'\\n' * 1000)",
    "endless line to the server": "import os\nwhile True: os.write(3, b'x' * 1000)",
    "forged twice": "import os\nos.write(3, b'{}\\n{}\\n')",
    "big value": "'x' * 10_000_000",
    "big exception": "raise ValueError('x' * 10_000_000)",
    "recursion": "def f(): return f()\nf()",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1) + 1\nf(0)",
    "recursive repr": "x = []\nfor _ in range(100_000): x = [x]\nx",
    "slow repr": "class A:\n    def __repr__(self):\n        while True: pass\nA()",
    "slow exception": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E()",
    "nested brackets": "x = " + "(" * 5000 + ")" * 5000,
    "nested expression": "x = " + "-" * 60_000 + "1",
    "long chain": "x = " + "+".join(["1"] * 30_000),
    "hash collisions": "d = {}\nclass K:\n    def __hash__(self): return 1\n    def __eq__(self, o): return False\nwhile True: d[K()] = 1",
    "finalizers": "class A:\n    def __del__(self): a = A()\nwhile True: A()",
    "exception chain": "def f():\n    try: f()\n    except BaseException: f()\nf()",
    "signal to itself": "import signal\nwhile True: signal.raise_signal(15)",
    "alarm storm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(9,)).start()\n    except RuntimeError: pass",
    "descriptor bomb": "import os\nfds = []\nwhile True:\n    try: fds.append(os.dup(0))\n    except OSError: pass",
    "pipe bomb": "import os\nwhile True:\n    try: os.pipe()\n    except OSError: pass",
    "mapping bomb": "import mmap\nm = []\nwhile True: m.append(mmap.mmap(-1, 1 << 24))",
    "stack of generators": "g = iter([1])\nfor _ in range(10 ** 6): g = map(lambda x: x, g)\nnext(g)",
    "numpy memory": "import numpy as np\nnp.ones(10 ** 10)",
    "numpy loop": "import numpy as np\na = np.ones((3000, 3000))\nwhile True: a = a @ a",
    "numpy out of bounds": "import numpy as np\na = np.zeros(8)\nnp.lib.stride_tricks.as_strided(a, (1 << 40,), (8,))[:] = 1",
    "sympy factors": "from sympy import factorint\nfactorint(2 ** 1061 - 1)",
    "sympy expansion": "from sympy import symbols, expand\nx, y, z = symbols('x y z')\nexpand((x + y + z) ** 3000)",
    "end of line": "\x00",
    "not a program": "this is not python",
    "half a surrogate": "print('\\ud800')\n'\\udfff'",
}
"""Attempts to take more than one's share, by name."""
