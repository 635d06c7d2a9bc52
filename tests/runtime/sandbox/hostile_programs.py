"""Programs that want out, or want everything. `@NAME@` stands for something of the host; see `test_hostile.py`.

Every program tries its trick and, where that works, uses it on the host: it reads the secret, leaves a file, connects,
signals. What one can do within its own process is its own business.
"""
# ruff: noqa: E501

from __future__ import annotations

from runtime.sandbox.hostile_bombs import BOMBS
from runtime.sandbox.hostile_calls import CALLS
from runtime.sandbox.hostile_modules import MODULES, SCIENCE
from runtime.sandbox.hostile_uses import with_builtins, with_os

__all__ = ["BOMBS", "CAPABILITIES"]

_WALKS = {
    "subclasses to os": with_os("""
for c in ().__class__.__base__.__subclasses__():
    g = getattr(getattr(c, "__init__", None), "__globals__", {})
    if "sys" in g and hasattr(g["sys"], "modules"):
        use(g["sys"].modules["os"]); break
"""),
    "mro of a string": with_os("""
base = "".__class__.__mro__[-1]
w = [c for c in base.__subclasses__() if c.__name__ == "_wrap_close"]
use(__import__("types").SimpleNamespace(**w[0].__init__.__globals__))
"""),
    "warnings catcher": with_os("""
for c in object.__subclasses__():
    if c.__name__ == "catch_warnings":
        use(c()._module.sys.modules["os"])
"""),
    "builtins of a function": with_builtins("def f(): pass\nuse(f.__globals__['__builtins__'])"),
    "builtins attribute of a function": with_builtins("def f(): pass\nuse(f.__builtins__)"),
    "builtins of a lambda by getattr": with_builtins("use(getattr((lambda: 0), '__glo' + 'bals__')['__builtins__'])"),
    "builtins by vars": with_builtins("use(vars()['__builtins__'])"),
    "builtins by globals": with_builtins("use(globals()['__builtins__'])"),
    "self of a builtin": with_builtins("use(print.__self__)"),
    "self of len by attrgetter": with_builtins("import operator\nuse(operator.attrgetter('__self__')(len))"),
    "module of a class": with_builtins("import sys\nuse(sys.modules['builtins'])"),
    "reduce_ex": with_builtins("use((1).__reduce_ex__(2)[0].__globals__['__builtins__'])"),
    "frame of a generator": with_builtins("""
def g():
    yield 1
it = g()
use(it.gi_frame.f_back.f_builtins if it.gi_frame.f_back else it.gi_frame.f_builtins)
"""),
    "frame of a running generator": with_builtins("""
def g():
    yield it.gi_frame.f_back.f_back.f_globals
it = g()
use(next(it)["__builtins__"])
"""),
    "frame of a coroutine": with_builtins("""
async def c(): pass
co = c()
f = co.cr_frame
co.close()
use(f.f_builtins)
"""),
    "frame of an async generator": with_builtins("""
async def c():
    yield 1
use(c().ag_frame.f_builtins)
"""),
    "frame of a traceback": with_builtins("""
try:
    1 / 0
except ZeroDivisionError as error:
    f = error.__traceback__.tb_frame
    while f.f_back:
        f = f.f_back
    use(f.f_builtins)
"""),
    "frame by sys": with_builtins("import sys\nuse(sys._getframe(1).f_builtins)"),
    "frame by inspect": with_builtins("import inspect\nuse(inspect.currentframe().f_back.f_globals['__builtins__'])"),
    "object of an attribute error": with_builtins("""
import math
try:
    math.nothing
except AttributeError as error:
    use(error.obj.__loader__.load_module.__func__.__globals__["__builtins__"])
"""),
    "exception group": with_builtins("""
try:
    raise ExceptionGroup("", [ValueError()])
except* ValueError as group:
    use(group.__traceback__.tb_frame.f_builtins)
"""),
    "code replaced": with_builtins("""
def f(): return 1
def g(): return __import__("os")
f.__code__ = g.__code__
use(f().__builtins__)
"""),
    "code constructed": with_builtins("""
import types
f = types.FunctionType(compile("__builtins__", "", "eval"), {})
use(f())
"""),
    "class made by type": with_builtins("""
X = type("X", (), {"__getattr__": lambda self, n: n})
use(X.__init__.__objclass__.__subclasses__()[0].__init__.__globals__["__builtins__"])
"""),
    "metaclass": with_builtins("""
class M(type):
    def __instancecheck__(cls, other): return True
class A(metaclass=M): pass
use(M.__init__.__globals__["__builtins__"])
"""),
    "getattribute": with_builtins("""
class A:
    def __getattribute__(self, name): return object.__getattribute__(self, name)
use(A.__getattribute__.__globals__["__builtins__"])
"""),
    "class cell": with_builtins("""
class A:
    def f(self): return __class__
use(A.f.__closure__[0].cell_contents.f.__builtins__)
"""),
    "match on attributes": with_builtins("""
def f(): pass
match f:
    case object(__globals__=g): use(g["__builtins__"])
"""),
    "positional-only guard names": with_builtins("""
def f(_getattr_, /): return [].__class__.__base__.__subclasses__()
use(f(lambda o, n: o)[0].__init__.__globals__["__builtins__"])
"""),
    "guard name as a parameter": with_builtins("f = lambda _getattr_=lambda o, n: o: (1).__class__\nuse(f())"),
    "guard replaced by global": with_builtins("""
def f():
    global _getattr_
    _getattr_ = lambda o, n: o
f()
use(f.__globals__["__builtins__"])
"""),
    "star import of a guard": with_builtins("from math import *\n_getitem_ = None\nuse(f.__globals__)"),
    "delete the guards": with_builtins(
        "del _getattr_, _getiter_, _write_\nuse((lambda: 0).__globals__['__builtins__'])"
    ),
    "descriptor set_name": with_builtins("""
class D:
    def __set_name__(self, owner, name): use(self.__set_name__.__func__.__globals__["__builtins__"])
class A:
    d = D()
"""),
    "finalizer": with_builtins("""
class A:
    def __del__(self): use(A.__del__.__globals__["__builtins__"])
a = A()
del a
"""),
    "decorator walk": with_builtins("""
@lambda f: use(f.__globals__["__builtins__"])
def f(): pass
"""),
    "f-string attribute": "def f(): pass\nprint(f'{f.__globals__}')\nprint(open('@SECRET@').read())",
}
_FORMATS = {
    "format globals": with_builtins("def f(): pass\nprint('{0.__globals__}'.format(f))\nuse(eval('__builtins__'))"),
    "format_map": "class A: pass\nprint('{a.__class__.__init__.__globals__[__builtins__]}'.format_map({'a': A()}))",
    "format of the class": "print(str.format('{0.__class__.__mro__[1].__subclasses__}', ''))",
    "string formatter": with_os("""
import string
found = []
class F(string.Formatter):
    def format_field(self, value, spec):
        found.append(value); return ''
import math
F().format('{0.__loader__.__init__.__globals__[sys].modules[os]}', math)
use(found[0])
"""),
    "string template": "import string\nprint(string.Template('${a.__class__}').pattern.flags.__class__.__mro__)",
    "format of a loader": "import json\nprint('{0.codecs.open}'.format(json))\nprint(json.codecs.open('@SECRET@').read())",
    "format of an enum": "import re\nprint('{0.enum.sys.modules[os].environ}'.format(re))",
    "logging style": "print('%(__class__)s' % {'__class__': open('@SECRET@').read()})",
}
CAPABILITIES: dict[str, str] = {**_WALKS, **_FORMATS, **MODULES, **SCIENCE, **CALLS}
"""Attempts to reach the host, by name."""
