"""Hostile programs that go through modules: those of the standard library, and of numpy, scipy and sympy."""
# ruff: noqa: E501

from __future__ import annotations

from runtime.sandbox.hostile_uses import with_builtins, with_os

__all__ = ["MODULES", "SCIENCE"]

MODULES = {
    "import os": with_os("import os\nuse(os)"),
    "import by name in parts": with_os("use(__import__('o' + 's'))"),
    "importlib": with_os("import importlib\nuse(importlib.import_module('os'))"),
    "import posix": with_os("import posix\nposix.environ\nposix.system('touch @TARGET@/posix')\nuse(posix)"),
    "subprocess": "import subprocess\nprint(subprocess.run(['cat', '@SECRET@'], capture_output=True))",
    "pty": "import pty\npty.spawn(['touch', '@TARGET@/pty'])",
    "multiprocessing": "import multiprocessing as m\np = m.Process(target=print)\np.start(); p.join()",
    "shutil": "import shutil\nshutil.copy('@SECRET@', '@TARGET@/copied')",
    "pathlib": "import pathlib\nprint(pathlib.Path('@SECRET@').read_text())\npathlib.Path('@TARGET@/p').touch()",
    "tempfile": "import tempfile\nprint(tempfile.NamedTemporaryFile(dir='@TARGET@', delete=False).name)",
    "update_wrapper": with_builtins("""
import functools, statistics
def f(): pass
functools.update_wrapper(f, statistics.mean, assigned=(), updated=('__globals__',))
use(globals()["__builtins__"])
"""),
    "partial reconstruction": with_builtins("""
import functools
p = functools.partial(print)
p.__setstate__((eval, ("__builtins__",), {}, {}))
use(p())
"""),
    "reduce over getattr": with_builtins("""
import functools
use(functools.reduce(getattr, ['__class__', '__base__', '__subclasses__'], ())()[0].__init__.__globals__)
"""),
    "cached_property": with_builtins(
        "import functools\nuse(functools.cached_property.__init__.__globals__['__builtins__'])"
    ),
    "singledispatch": with_builtins(
        "import functools\nuse(functools.singledispatch(print).__globals__['__builtins__'])"
    ),
    "statistics sys": with_os("import statistics\nuse(statistics.sys.modules['os'])"),
    "datetime sys": with_os("import datetime\nuse(datetime.sys.modules['os'])"),
    "fractions operator": with_builtins("import fractions\nuse(fractions.operator.attrgetter('__self__')(len))"),
    "random os": with_os("import random\nuse(random._os)"),
    "json codecs": "import json\nprint(json.codecs.open('@SECRET@').read())",
    "re enum sys": with_os("import re\nuse(re.enum.sys.modules['os'])"),
    "collections sys": with_os("import collections\nuse(collections._sys.modules['os'])"),
    "heapq doctest": with_builtins("import heapq\nuse(heapq.__builtins__)"),
    "dataclasses namespace": with_builtins("""
from dataclasses import make_dataclass
make_dataclass("A", [("x", "__import__('os').system('touch @TARGET@/dataclass')")])
use(make_dataclass.__globals__["__builtins__"])
"""),
    "dataclass field name": "from dataclasses import make_dataclass\nmake_dataclass('A', ['x=open(\"@SECRET@\").read()'])",
    "dataclass default factory": with_builtins("""
from dataclasses import dataclass, field
@dataclass
class A:
    x: object = field(default_factory=lambda: use(A.__init__.__globals__["__builtins__"]))
A()
"""),
    "get_type_hints": with_os("""
import typing
class A:
    x: "use(__import__('os'))"
typing.get_type_hints(A)
A.__annotations__ = {"y": "__import__('os').system('touch @TARGET@/hint')"}
typing.get_type_hints(A)
"""),
    "forward reference": 'import typing\ntyping.ForwardRef(\'open("@TARGET@/ref", "w")\')._evaluate({}, {}, frozenset())',
    "named tuple": "import collections\ncollections.namedtuple('A', 'x', module='os')\nprint(open('@SECRET@').read())",
    "enum functional": with_builtins("import enum\nuse(enum.Enum.__call__.__globals__['__builtins__'])"),
    "contextlib": with_builtins("import contextlib\nuse(contextlib.contextmanager.__globals__['__builtins__'])"),
    "timeit": 'import timeit\nprint(timeit.timeit(\'open("@TARGET@/timeit", "w")\', number=1))',
    "pickle": "import pickle\npickle.loads(b\"cos\\nsystem\\n(S'touch @TARGET@/pickle'\\ntR.\")",
    "copyreg": with_builtins("import copy\nuse(copy.copyreg.__builtins__)"),
    "operator methodcaller": with_builtins("import operator\nuse(operator.methodcaller('__init__').__reduce__()[0])"),
    "ctypes open": """
import ctypes
libc = ctypes.CDLL(None)
fd = libc.open(b"@TARGET@/ctypes", 0o102, 0o600)
print(fd, libc.open(b"@SECRET@", 0), libc.system(b"touch @TARGET@/ctypes"), libc.kill(@VICTIM@, 9))
""",
    "code execution by exec": with_builtins("exec('use(__builtins__)')"),
    "code execution by eval": with_builtins("use(eval('__builtins__', {}))"),
    "code execution by codeop": 'import code\ncode.InteractiveInterpreter().runsource(\'open("@TARGET@/code", "w")\')',
    "warnings module": with_os("import warnings\nuse(warnings.sys.modules['os'])"),
    "linecache": "import linecache\nprint(linecache.getlines('@SECRET@'))",
    "fileinput": "import fileinput\nprint(list(fileinput.input('@SECRET@')))",
    "tokenize": "import tokenize\nprint(tokenize.open('@SECRET@').read())",
    "runpy": "import runpy\nrunpy.run_path('@SECRET@')",
    "zipimport": "import zipfile\nzipfile.ZipFile('@TARGET@/z.zip', 'w').writestr('a', 'b')",
    "sqlite": "import sqlite3\nsqlite3.connect('@TARGET@/db').execute('create table t (x)')",
    "dbm": "import dbm.dumb\ndbm.dumb.open('@TARGET@/db', 'n')['a'] = 'b'",
    "webbrowser": "import webbrowser\nwebbrowser.open('http://127.0.0.1:@PORT@/')",
    "breakpoint": "breakpoint()",
    "input and exit": "print(input())\nexit(3)",
}
SCIENCE = {
    "numpy loadtxt": "import numpy as np\nprint(np.loadtxt('@SECRET@', dtype=str))",
    "numpy genfromtxt": "import numpy as np\nprint(np.genfromtxt('@SECRET@', dtype=str))",
    "numpy fromfile": "import numpy as np\nprint(bytes(np.fromfile('@SECRET@', dtype='u1')))",
    "numpy memmap": "import numpy as np\nprint(bytes(np.memmap('@SECRET@', mode='r')))",
    "numpy writable memmap": "import numpy as np\nnp.memmap('@TARGET@/map', mode='w+', shape=(10,))",
    "numpy tofile": "import numpy as np\nnp.zeros(3).tofile('@TARGET@/tofile')",
    "numpy dump": "import numpy as np\nnp.zeros(3).dump('@TARGET@/dump')",
    "numpy save": "import numpy as np\nnp.save('@TARGET@/save', np.zeros(3))",
    "numpy savetxt": "import numpy as np\nnp.savetxt('@TARGET@/text', np.zeros(3))",
    "numpy load pickle": "import numpy as np\nprint(np.load('@SECRET@', allow_pickle=True))",
    "numpy DataSource": "import numpy as np\nprint(np.lib.npyio.DataSource().open('@SECRET@').read())",
    "numpy ctypeslib": "import numpy as np\nprint(np.ctypeslib.load_library('libc.so.6', '/lib/x86_64-linux-gnu'))",
    "numpy f2py": "import numpy.f2py\nnumpy.f2py.compile('end')",
    "numpy testing": 'import numpy.testing as t\nt.runstring(\'open("@TARGET@/t", "w")\', {})',
    "numpy os": with_os("import numpy as np\nuse(np.os)"),
    "numpy lib os": with_os("import numpy as np\nuse(np.lib._datasource.os)"),
    "numpy memory": """
import numpy as np
a = np.zeros(8)
address = a.ctypes.data
print(np.lib.stride_tricks.as_strided(a, (1 << 16,), (8,)).sum(), address)
print(open('@SECRET@').read())
""",
    "numpy frompyfunc": with_builtins("import numpy as np\nuse(np.frompyfunc(eval, 1, 1)('__builtins__'))"),
    "numpy object array": with_builtins("""
import numpy as np
a = np.array([lambda: 0], dtype=object)
use(a[0].__globals__["__builtins__"])
"""),
    "numpy structured names": "import numpy as np\nprint(np.dtype([('__class__', 'i4')]).names.__class__.__base__.__subclasses__)",
    "sympify a string": 'import sympy\nprint(sympy.sympify(\'__import__("os").system("touch @TARGET@/sympify")\'))',
    "S of a string": "from sympy import S\nprint(S('open(\"@SECRET@\").read()'))",
    "simplify a string": 'from sympy import simplify\nprint(simplify(\'open("@TARGET@/simplify", "w")\'))',
    "solve a string": "from sympy import solve\nprint(solve('exec(\"open(\\'@TARGET@/solve\\', \\'w\\')\")', 'x'))",
    "parse_expr": "from sympy.parsing.sympy_parser import parse_expr\nprint(parse_expr('open(\"@SECRET@\").read()'))",
    "parse_expr with globals": """
from sympy.parsing.sympy_parser import parse_expr
print(parse_expr('f(1)', global_dict={"f": lambda x: open("@SECRET@").read(), "Integer": int}))
""",
    "symbol name in lambdify": """
from sympy import Symbol, lambdify
x = Symbol('__import__("os").system("touch @TARGET@/lambdify")')
print(lambdify([], x)())
""",
    "lambdify modules": """
from sympy import Function, symbols, lambdify
x = symbols('x')
print(lambdify(x, Function('f')(x), modules=[{'f': lambda v: open('@SECRET@').read()}])(1))
""",
    "lambdify argument name": """
from sympy import lambdify
lambdify('x=open("@TARGET@/argument", "w")', 1)()
""",
    "lambdify printer": """
from sympy import lambdify, symbols
from sympy.printing.pycode import PythonCodePrinter
class P(PythonCodePrinter):
    def _print_Symbol(self, e): return '__import__("os").system("touch @TARGET@/printer")'
lambdify(symbols('x'), symbols('y'), printer=P)(1)
""",
    "sympy preview": "from sympy import preview, Symbol\npreview(Symbol('x'), viewer='file', filename='@TARGET@/preview.png')",
    "sympy autowrap": "from sympy.utilities.autowrap import autowrap\nfrom sympy.abc import x\nautowrap(x, tempdir='@TARGET@')",
    "sympy codegen": "from sympy.utilities.codegen import codegen\nfrom sympy.abc import x\ncodegen(('f', x), 'C', '@TARGET@/f', to_files=True)",
    "sympy runtests": "import sympy\nsympy.test('@TARGET@')",
    "sympy plot": "from sympy import plot, Symbol\nplot(Symbol('x'), show=False).save('@TARGET@/plot.png')",
    "mpmath eval": "import mpmath\nprint(mpmath.mpf('1').__class__.__init__)\nmpmath.libmp.backend.exec_('open(\"@TARGET@/mp\", \"w\")', {}, {})",
    "scipy io": "import scipy.io\nscipy.io.savemat('@TARGET@/a.mat', {'a': 1})",
    "scipy low-level callable": """
import ctypes
from scipy import LowLevelCallable, integrate
f = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: len(open('@SECRET@').read()))
print(integrate.quad(LowLevelCallable(f), 0, 1))
""",
    "scipy weave": "from scipy._lib import _ccallback\nprint(_ccallback.__builtins__['open']('@SECRET@').read())",
}
