"""Programs that try to get hold of something of the interpreter; each leaves what it got in `got`.

Plain Python gives every one of them what it wants (`policy_child.is_capability` decides), which keeps them honest.
"""

from __future__ import annotations

__all__ = ["ATTACKS"]

ATTACKS: dict[str, str] = {
    # Imports.
    "import_os": "import os as got",
    "import_sys_modules": "import sys\ngot = sys.modules['os']",
    "import_subprocess": "from subprocess import Popen\ngot = Popen and 'PWNED'",
    "import_builtins": "import builtins as got",
    "import_submodule": "import os.path as got",
    "import_in_function": "def f():\n    import socket\n    return socket\ngot = f()",
    "import_dunder": "got = __import__('os')",
    "import_from_io": "from io import FileIO\ngot = FileIO('/etc/passwd')",
    "import_io_open": "import io\ngot = io.open",
    "import_pathlib": "from pathlib import Path\ngot = Path('/etc/passwd').open()",
    "import_pickle": "import pickle\ngot = pickle.loads(b'cos\\nsystem\\n.')",
    "import_ctypes": "import ctypes as got",
    "import_importlib": "import importlib\ngot = importlib.import_module('os')",
    "import_inspect": "import inspect\ngot = inspect.currentframe()",
    "import_gc": "import gc as got",
    "import_main": "import __main__ as got",
    "import_exec_source": "exec('import os as got')",
    "import_eval": "got = eval('__import__(\"os\")')",
    "import_compile": "got = compile('1', 'x', 'eval')",
    "import_timeit": "import timeit\ngot = timeit.sys",
    "import_queue": "import queue\ngot = queue.threading",
    "import_contextlib": "import contextlib\ngot = contextlib.os",
    # Modules through modules.
    "module_statistics": "import statistics\ngot = statistics.sys",
    "module_random": "import random\ngot = random._os",
    "module_from_random": "from random import _os as got",
    "module_json": "import json\ngot = json.codecs",
    "module_from_json": "from json import codecs as got",
    "module_codecs_open": "import json\ngot = json.codecs.open and 'PWNED'",
    "module_re": "import re\ngot = re.enum.sys",
    "module_fractions": "import fractions\ngot = fractions.operator",
    "module_dataclasses": "from dataclasses import sys as got",
    "module_typing": "import typing\ngot = typing.sys",
    "module_collections": "import collections\ngot = collections._sys",
    "module_enum": "import enum\ngot = enum.sys",
    "module_loader": "import textwrap\ngot = textwrap.__loader__",
    "module_spec": "import textwrap\ngot = textwrap.__spec__",
    "module_dict": "import textwrap\ngot = textwrap.__dict__",
    "module_builtins": "import textwrap\ngot = textwrap.__builtins__",
    "module_vars": "import textwrap\ngot = vars(textwrap)",
    "module_getattr": "import statistics\ngot = getattr(statistics, 'sys')",
    "module_attrgetter": "import operator, statistics\ngot = operator.attrgetter('sys.modules')(statistics)['os']",
    "module_match": (
        "import statistics\nmatch statistics:\n    case object(sys=s):\n        got = s\n    case _:\n"
        "        raise AttributeError('sys')"
    ),
    "module_match_value": (
        "import statistics\nclass E:\n    def __eq__(self, other):\n        global got\n        got = other\n"
        "match E():\n    case statistics.sys:\n        pass"
    ),
    "module_augmented": (
        "import statistics\nclass Grab:\n    def __radd__(self, other):\n        global got\n        got = other\n"
        "        return self\nstatistics.sys += Grab()"
    ),
    "module_star": "from numpy.testing import *\ngot = assert_equal and 'PWNED'",
    "module_warnings": "import warnings\ngot = warnings.sys",
    "module_traceback": "import traceback\ngot = traceback.sys",
    "module_io_types": "import types\ngot = types.ModuleType('x')",
    "module_catch_warnings": "import warnings\ngot = warnings.catch_warnings()._module",
    # Object graph.
    "walk_subclasses": (
        "got = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "
        "'_wrap_close'][0].__init__.__globals__"
    ),
    "walk_mro": "got = type('', (), {}).__mro__[-1].__subclasses__()",
    "walk_object": "got = object.__subclasses__()",
    "walk_type_type": "got = type(type(1)).__subclasses__(type)",
    "walk_base": "class A: pass\ngot = A.__base__.__subclasses__()",
    "walk_init_globals": "class A:\n    def __init__(self): pass\ngot = A.__init__.__globals__",
    "walk_function_globals": "def f(): pass\ngot = f.__globals__",
    "walk_closure": "def f():\n    x = 1\n    return lambda: x\ngot = f().__closure__[0]",
    "walk_code": "def f(): pass\ngot = f.__code__",
    "walk_builtin_self": "got = print.__self__",
    "walk_len_self": "got = len.__self__",
    "walk_method_func": "class A:\n    def m(self): pass\ngot = A().m.__func__.__globals__",
    "walk_reduce_ex": "got = (1).__reduce_ex__(2)[0] and 'PWNED'",
    "walk_getattribute": "def f(): pass\ngot = object.__getattribute__(f, '__globals__')",
    "walk_getattr_dynamic": "def f(): pass\ngot = getattr(f, '__glo' + 'bals__')",
    "walk_str_subclass": (
        "class S(str):\n    def startswith(self, *a): return False\n    def __getitem__(self, i): return 'x'\n"
        "def f(): pass\ngot = getattr(f, S('__globals__'))"
    ),
    "walk_map_getattr": "def f(): pass\ngot = list(map(getattr, [f], ['__globals__']))[0]",
    "walk_methodcaller": "import operator\ngot = operator.methodcaller('__subclasses__')(object)",
    "walk_attrgetter": "import operator\ndef f(): pass\ngot = operator.attrgetter('__globals__')(f)",
    "walk_wrapped_guard": "got = getattr.__self__",
    "walk_class_dict": "class A:\n    def m(self): pass\ngot = A.__dict__['__dict__']",
    "walk_property_fget": "class A:\n    @property\n    def p(self): return 1\ngot = A.p.fget.__globals__",
    "walk_partial": "import functools\ndef f(): pass\ngot = functools.partial(f).func.__globals__",
    "walk_lru_cache": "import functools\n@functools.lru_cache\ndef f(): pass\ngot = f.__wrapped__.__globals__",
    "walk_ior": "import functools\ngot = functools.reduce.__self__",
    # Frames.
    "frame_generator": "def g():\n    yield\nx = g()\ngot = x.gi_frame",
    "frame_generator_code": "def g():\n    yield\nx = g()\ngot = x.gi_code",
    "frame_getattr": "def g():\n    yield\nx = g()\ngot = getattr(x, 'gi_' + 'frame')",
    "frame_format": (
        "def g():\n    yield\nx = g()\ntext = '{0.gi_frame.f_builtins}'.format(x)\n"
        "got = 'PWNED' if 'built-in' in text else None"
    ),
    "frame_match": "def g():\n    yield\nx = g()\nmatch x:\n    case object(gi_frame=f):\n        got = f",
    "frame_match_args": (
        "def g():\n    yield\nx = g()\nfrom abc import ABC\nclass A(ABC):\n    __match_args__ = ('gi_frame',)\n"
        "A.register(type(x))\nmatch x:\n    case A(f):\n        got = f"
    ),
    "frame_namedtuple": (
        "def g():\n    yield\nx = g()\nfrom collections import namedtuple\nfrom abc import ABC\n"
        "class A(namedtuple('N', 'gi_frame'), ABC): pass\nA.register(type(x))\nmatch x:\n    case A(f):\n"
        "        got = f"
    ),
    "frame_augmented": (
        "def g():\n    yield\nx = g()\nclass Grab:\n    def __radd__(self, other):\n        global got\n"
        "        got = other\n        return self\ntry:\n    x.gi_frame += Grab()\nexcept AttributeError:\n    pass"
    ),
    "frame_traceback": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    got = e.__traceback__",
    "frame_tb_frame": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    got = e.__traceback__.tb_frame",
    "frame_exit": (
        "class C:\n    def __enter__(self): pass\n    def __exit__(self, k, v, tb):\n        global got\n"
        "        got = tb.tb_frame\n        return True\nwith C():\n    1 / 0"
    ),
    "frame_sys": "import sys\ngot = sys._getframe()",
    "frame_exc_info": "import sys\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    got = sys.exc_info()[2]",
    "frame_coroutine": "async def f(): pass\nc = f()\ngot = c.cr_frame\nc.close()",
    "frame_error_obj": "import math\ntry:\n    math.zzz\nexcept AttributeError as e:\n    got = e.obj",
    "frame_exit_stack": (
        "import contextlib\nwith contextlib.ExitStack() as s:\n    s.callback(eval, 'sys.modules')\ngot = 'PWNED'"
    ),
    # Text that is evaluated or formatted.
    "format_class": (
        "text = '{0.__class__.__base__.__subclasses__}'.format(())\ngot = 'PWNED' if 'subclasses' in text else None"
    ),
    "format_globals": (
        "def f(): pass\ntext = '{0.__globals__}'.format(f)\ngot = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_unbound": (
        "def f(): pass\ntext = str.format('{0.__globals__}', f)\ngot = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_map": (
        "def f(): pass\ntext = '{f.__globals__}'.format_map({'f': f})\n"
        "got = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_nested": (
        "class W:\n    def __format__(self, spec): return spec\ndef f(): pass\n"
        "text = '{0:{1.__globals__}}'.format(W(), f)\ngot = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_formatter": (
        "import string\ndef f(): pass\ngot = string.Formatter().get_field('0.__globals__', (f,), {})[0]"
    ),
    "format_formatter_subclass": (
        "import string\nclass F(string.Formatter): pass\ndef f(): pass\n"
        "got = super(string.Formatter, F()).__init__ and F().get_field('0.__globals__', (f,), {})[0]"
    ),
    "format_user_string": (
        "from collections import UserString\ndef f(): pass\ntext = UserString('{0.__globals__}').format(f)\n"
        "got = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_str_subclass": (
        "class S(str): pass\ndef f(): pass\ntext = super(S, S('{0.__globals__}')).format(f)\n"
        "got = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_augmented": (
        "class S(str): pass\nclass G:\n    def __radd__(self, o):\n        global raw\n        raw = o\n"
        "        return self\ndef f(): pass\ns = S('{0.__globals__}')\ns.format += G()\ntext = raw(f)\n"
        "got = 'PWNED' if '__builtins__' in text else None"
    ),
    "format_match": (
        "def f(): pass\nmatch '{0.__globals__}':\n    case str(format=m):\n"
        "        got = 'PWNED' if '__builtins__' in m(f) else None"
    ),
    "format_methodcaller": (
        "import operator\ndef f(): pass\ntext = operator.methodcaller('format', f)('{0.__globals__}')\n"
        "got = 'PWNED' if '__builtins__' in text else None"
    ),
    "text_type_hints": (
        "import typing\nclass A:\n    x: '().__class__.__base__.__subclasses__'\ntry:\n"
        "    got = typing.get_type_hints(A)['x'] and 'PWNED'\nexcept TypeError:\n    got = 'PWNED'"
    ),
    "text_singledispatch": (
        "import functools\nclass A:\n    x: '__import__(\"os\").system'\n@functools.singledispatch\ndef f(a): pass\n"
        "try:\n    f.register(A())\nexcept TypeError as e:\n    got = 'PWNED' if 'system' in str(e) else None"
    ),
    "text_dispatch_annotation": (
        "import functools\n@functools.singledispatch\ndef f(a): pass\ndef g(a): pass\n"
        "g.__annotations__ = {'a': '().__class__.__base__'}\nf.register(g)\ngot = 'PWNED'"
    ),
    "text_forward_ref": (
        "from typing import ForwardRef\ngot = ForwardRef('len')._evaluate(globals(), None, frozenset()) and 'PWNED'"
    ),
    "text_make_dataclass": (
        "import dataclasses\n"
        "got = dataclasses.make_dataclass('D', [], namespace={'__getattribute__': lambda s, n: 1}) and 'PWNED'"
    ),
    # Library functions that reach further than they seem to.
    "wrapper_globals": (
        "import functools, statistics\ndef f(): pass\n"
        "functools.update_wrapper(f, statistics.mean, assigned=(), updated=('__globals__',))\ngot = sys"
    ),
    "wraps_code": (
        "import functools, statistics\n"
        "@functools.wraps(statistics.mean, assigned=('__dict__',), updated=('__globals__',))\ndef f(): pass\n"
        "got = sys"
    ),
    "stdout_buffer": "import sys\ngot = sys.__stdin__.buffer",
    "open_file": "got = open('/proc/self/environ')",
    "open_descriptor": "got = open(1, 'w', closefd=False)",
    "helper_license": "import sys\ngot = sys.meta_path and 'PWNED'",
    "global_builtins": "got = __builtins__",
    "global_dict": "got = globals()['__builtins__']",
    "guard_function": "f = hasattr\ngot = f.__self__",
    "type_function": "def f(): pass\ngot = type(f)(f.__code__, {}) and 'PWNED'",
    "type_three": "got = type('X', (), {'__reduce__': 1, '__getattribute__': lambda s, n: 1}) and 'PWNED'",
    "abc_metaclass": "import abc\ngot = abc.ABCMeta('X', (), {'__getattribute__': lambda s, n: 1}) and 'PWNED'",
    "own_metaclass": "class M(type):\n    def __instancecheck__(cls, x): return True\ngot = 'PWNED'",
    "write_module": "import math\nmath.sqrt = lambda x: 42\ngot = 'PWNED' if math.sqrt(4) == 42 else None",
    "write_setattr": "import json\nsetattr(json, 'dumps', 1)\ngot = 'PWNED' if json.dumps == 1 else None",
    "write_class": "import decimal\nimport fractions\nfractions.Fraction.x = 1\ngot = 'PWNED'",
    "write_object_setattr": (
        "def f(): return 1\ndef g(): return 2\nobject.__setattr__(f, '__code__', g.__code__)\n"
        "got = 'PWNED' if f() == 2 else None"
    ),
    "write_dunder_dict": (
        "class A: pass\na = A()\na.__dict__['__array_interface__'] = {'data': (4096, False)}\n"
        "got = 'PWNED' if '__array_interface__' in vars(a) else None"
    ),
    "delete_attribute": "import json\ndel json.dumps\ngot = 'PWNED'",
    "exception_group": "class G(ExceptionGroup):\n    def split(self, *a): return None\ngot = 'PWNED'",
    "shadow_guard": "_getattr_ = lambda o, n: 'PWNED'\ngot = _getattr_(1, 'real')",
    "shadow_guard_argument": "def f(_getattr_, /): return _getattr_\ngot = f('PWNED')",
    "shadow_guard_except": "try:\n    raise ValueError\nexcept ValueError as _write_:\n    got = 'PWNED'",
    "shadow_guard_match": "match 'PWNED':\n    case _getattr_:\n        got = _getattr_",
    "shadow_guard_import": "import math as _getattr_\ngot = 'PWNED'",
    "shadow_guard_eval": "got = eval('1 .real and \"PWNED\"', {'_getattr_': lambda o, n: 1})",
    "del_hook": "class A:\n    def __del__(self): pass\ngot = 'PWNED'",
    "getattribute_hook": "class A:\n    def __getattribute__(self, name): return 1\ngot = 'PWNED'",
    # numpy and sympy.
    "numpy_load": "import numpy as np\ngot = np.load and 'PWNED'",
    "numpy_loadtxt": (
        "import numpy as np\ngot = 'PWNED' if len(np.loadtxt('/etc/passwd', dtype=str, delimiter=':')) else None"
    ),
    "numpy_genfromtxt": "from numpy import genfromtxt\ngot = genfromtxt and 'PWNED'",
    "numpy_fromfile": "import numpy as np\ngot = 'PWNED' if len(np.fromfile('/etc/passwd', dtype='u1')) else None",
    "numpy_memmap": "import numpy as np\ngot = 'PWNED' if len(np.memmap('/etc/passwd', mode='r')) else None",
    "numpy_strides": (
        "import numpy as np\nfrom numpy.lib.stride_tricks import as_strided\n"
        "got = 'PWNED' if as_strided(np.zeros(1), (2,)).size == 2 else None"
    ),
    "numpy_strides_path": "import numpy as np\ngot = np.lib.stride_tricks.as_strided and 'PWNED'",
    "numpy_ctypes": "import numpy as np\ngot = np.zeros(1).ctypes.data and 'PWNED'",
    "numpy_ctypes_getattr": "import numpy as np\ngot = getattr(np.ndarray, 'ctypes') and 'PWNED'",
    "numpy_ctypeslib": "import numpy.ctypeslib as got",
    "numpy_testing": "import numpy.testing as got",
    "numpy_interface": (
        "import numpy as np\nasked = []\nclass A:\n    def __getattr__(self, name):\n        asked.append(name)\n"
        "        raise AttributeError(name)\nnp.array(A())\nif not asked: raise AttributeError('never asked')\n"
        "got = 'PWNED'"
    ),
    "numpy_interface_slot": "import numpy as np\nclass A:\n    __array_interface__ = {}\ngot = 'PWNED'",
    "numpy_tofile": "import numpy as np\ngot = np.zeros(1).tofile and 'PWNED'",
    "numpy_f2py": "import numpy.f2py as got",
    "numpy_private": "import numpy as np\ngot = np._core",
    "scipy_callable": "from scipy import LowLevelCallable\ngot = 'PWNED'",
    "scipy_io": "import scipy.io as got",
    "sympy_sympify": "import sympy\ngot = sympy.parse_expr('().__class__.__base__.__subclasses__()') and 'PWNED'",
    "sympy_open": "from sympy import parse_expr\ngot = parse_expr('open(\"/etc/passwd\")')",
    "sympy_eval": "import sympy\ngot = sympy.S('eval(\"[].append\")') and 'PWNED'",
    "sympy_solve": "from sympy import solve\nsolve('exec(\"global got; got = 1\") or x', 'x')\ngot = 'PWNED'",
    "sympy_unevaluated": "from sympy import parse_expr\ngot = parse_expr('open(\"/etc/passwd\")', evaluate=False)",
    "sympy_str_object": (
        "import sympy\nclass A:\n    def __str__(self): return 'open(\"/etc/passwd\")'\ngot = sympy.sympify(str(A()))"
    ),
    "sympy_lambdify_name": (
        "from sympy import Symbol, lambdify\nx = Symbol('__import__(\"os\").getpid()')\n"
        "got = 'PWNED' if lambdify([], x + 1)() > 1 else None"
    ),
    "sympy_lambdify_function": (
        "from sympy import Function, Symbol, lambdify\nx = Symbol('x')\n"
        "got = lambdify(x, Function('open')(x))('/etc/passwd')"
    ),
    "sympy_lambdify_numpy": (
        "from sympy import Function, Symbol, lambdify\nx = Symbol('x')\n"
        "got = 'PWNED' if len(lambdify(x, Function('fromfile')(x), 'numpy')('/etc/passwd')) else None"
    ),
    "sympy_lambdify_module": (
        "from sympy.utilities.lambdify import lambdify\nfrom sympy import Symbol\nx = Symbol('().__class__')\n"
        "got = 'PWNED' if lambdify([], x, 'math')() is tuple else None"
    ),
    "sympy_preview": "import sympy\ngot = sympy.preview and 'PWNED'",
    "sympy_module": "import sympy.testing.runtests as got",
    "sympy_autowrap": "from sympy.utilities.autowrap import autowrap\ngot = autowrap and 'PWNED'",
    "text_identify": (
        "import mpmath\nmpmath.identify(1.5, ['len(().__class__.__base__.__subclasses__())'])\ngot = 'PWNED'"
    ),
    "text_identify_context": (
        "from mpmath import mp\nmp.identify(1.5, ['len(().__class__.__base__.__subclasses__())'])\ngot = 'PWNED'"
    ),
    "exec_without_builtins": (
        "d = {}\nexec('def f(): return eval(\"open\")', d)\ndel d['__builtins__']\ngot = d['f']()('/etc/passwd')"
    ),
    "exec_own_builtins": "d = {'x': 1}\nexec('x', d)\ngot = d['__builtins__']['__import__']('os')",
    "redirect_subclass": (
        "import contextlib, io\nclass R(contextlib.redirect_stdout): pass\nr = R(io.StringIO())\nr.__enter__()\n"
        "got = 'PWNED' if r._old_targets else None\nr.__exit__(None, None, None)"
    ),
    "alias_forwarding": "import numpy as np\nalias = type(list[int])(np.zeros(1), ())\ngot = alias.tofile and 'PWNED'",
}
