"""The language policy: what it lets through, what it refuses, and that a refusal says what to do instead."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from runtime.sandbox.confinement import needs_layers

from icrl.runtime.sandbox import Sandbox, policy

pytestmark = [needs_layers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Sandbox]:
    async with Sandbox() as opened:
        yield opened


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os", "os is not available"),
        ("import subprocess", "subprocess is not available"),
        ("from sys import modules", "modules"),
        ("__import__('socket')", "__import__ is not available"),
        ("open('/etc/passwd')", "open is not available"),
        ("().__class__.__mro__", "__mro__"),
        ("().__class__.__base__.__subclasses__()", "__subclasses__"),
        ("(lambda: 0).__globals__", "__globals__"),
        ("getattr((), '__class__').__bases__", "__bases__"),
        ("'{0.__class__.__mro__}'.format(1)", "__mro__"),
        ("'{a.__class__.__init__.__globals__}'.format_map({'a': 1})", "__globals__"),
        ("def g():\n    yield\ng().gi_frame", "gi_frame"),
        ("try:\n    1 / 0\nexcept Exception as e:\n    e.__traceback__", "__traceback__"),
        ("import statistics\nstatistics.sys", "sys"),
        ("import functools, statistics\nfunctools.update_wrapper(print, statistics.mean)", ""),
        ("import numpy as np\nnp.loadtxt('/etc/passwd')", "loadtxt"),
        ("import numpy as np\nnp.lib.stride_tricks.as_strided(np.zeros(1), (9,))", ""),
        ("import numpy as np\nnp.memmap('/tmp/x')", "memmap"),
        ("import sympy\nsympy.sympify('__import__(\"os\").getpid()')", ""),
        ("import typing\ntyping.get_type_hints(print)", "get_type_hints"),
        ("async def f(): pass", "async"),
        ("import math\nmath.sqrt = print", ""),
    ],
)
async def test_what_reaches_out_is_refused(box, code, said):
    result = await box.run(code, timeout_s=20.0)
    assert result.status in ("denied", "error")
    assert said in result.error
    assert "Error: name '_" not in result.error  # a guard's own name would tell the model nothing


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("x: int = 1\nx += 2\nprint(x)", "3\n"),
        ("d = {'a': [1]}\nd['a'][0] += 4\nprint(d)", "{'a': [5]}\n"),
        ("class A:\n    n = 0\na = A()\na.n += 1\nprint(a.n)", "1\n"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 2\n"
         "print(P(1))", "P(x=1, y=2)\n"),
        ("class A:\n    def __init__(self): self.v = 1\nclass B(A):\n    def __init__(self):\n"
         "        super().__init__()\nprint(B().v)", "1\n"),
        ("def f():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n        return n\n"
         "    return g\nprint(f()())", "1\n"),
        ("match [1, 2]:\n    case [a, b]:\n        print(a + b)", "3\n"),
        ("from math import *\nprint(floor(pi))", "3\n"),
        ("print('{:>5}|{!r}'.format('a', 'b'))", "    a|'b'\n"),
        ("print(*[1, 2], sep='-', end='!')", "1-2!"),
        ("if (n := 3) > 2: print(f'{n=}')", "n=3\n"),
        ("if __name__ == '__main__': print('main')", "main\n"),
        ("try:\n    raise ValueError('x')\nexcept ValueError as e:\n    print(type(e).__name__, e)", "ValueError x\n"),
        ("import itertools, functools, collections\nprint(functools.reduce(lambda a, b: a * b, range(1, 5)))", "24\n"),
        ("import sympy\nx = sympy.symbols('x')\nprint(sympy.simplify(sympy.sin(x)**2 + sympy.cos(x)**2))", "1\n"),
        ("import numpy as np\nprint(np.linalg.det(np.eye(3)))", "1.0\n"),
    ],
)  # fmt: skip
async def test_ordinary_python_is_not(box, code, printed):
    result = await box.run(code, timeout_s=20.0)
    assert (result.status, result.stdout, result.error) == ("ok", printed, None)


async def test_one_program_leaves_nothing_to_the_next(box):
    await box.run("import decimal, random\ndecimal.getcontext().prec = 5\nrandom.seed(1)\nleft = 1")
    result = await box.run("import decimal\nprint(decimal.getcontext().prec)\nleft")
    assert result.stdout == "28\n"
    assert "NameError" in result.error


async def test_a_refusal_inside_a_session_keeps_its_variables(box):
    async with box.session() as repl:
        await repl.run("x = 41")
        assert (await repl.run("import os")).status == "denied"
        assert (await repl.run("x + 1")).value == "42"


async def test_each_program_draws_its_own_random_numbers(box):
    drawn = {(await box.run("import numpy as np, random\n(random.random(), np.random.rand())")).value for _ in range(4)}
    assert len(drawn) == 4


async def test_the_languages_are_made_as_often_as_one_likes():
    for _ in range(2):
        assert policy.plain() is not policy.restricted()
