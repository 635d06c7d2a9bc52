"""Parts of the language policy by themselves, and where they have to agree with Python."""

from __future__ import annotations

import ast
import builtins
import functools
import io
import statistics
import subprocess
import sys
import time
import traceback
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.sandbox.policy_child import ROOT

from icrl.errors import MissingExtraError
from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.policy import plain, restricted
from icrl.runtime.sandbox.policy.formatting import Formatter, guarded_format
from icrl.runtime.sandbox.policy.names import mangled
from icrl.runtime.sandbox.policy.rules import rule_for
from icrl.runtime.sandbox.policy.source import FILENAME
from icrl.runtime.sandbox.policy.values import vet

FIELDS = ["{}", "{0}", "{:>7}", "{0:<{w}}", "{name}", "{name!r:^9}", "{{", "}}", "{p.real:05}", "{q[k]}", "{q[k].imag}"]
IDENTIFIERS = st.from_regex(r"\A_{0,3}[a-z]{0,3}_{0,3}\Z").filter(str.isidentifier)


@pytest.fixture(params=[plain, restricted])
def language(request):
    return request.param()


def run(code: str, **variables):
    language = restricted()
    return language.execute(code, language.namespace() | variables)


@given(st.lists(st.sampled_from(FIELDS) | st.text("ab {}.:!", max_size=3), max_size=4), st.integers())
def test_templates_are_filled_in_as_python_does(parts, number):
    template = "".join(parts)
    args, kwargs = (number, "x"), {"w": 4, "name": "n", "p": number, "q": {"k": number}}
    try:
        expected = template.format(*args, **kwargs)
    except (ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        with pytest.raises((type(error), ValueError, IndexError)):
            guarded_format(template, *args, **kwargs)
    else:
        assert guarded_format(template, *args, **kwargs) == expected
        assert Formatter().format(template, *args, **kwargs) == expected


@given(IDENTIFIERS, IDENTIFIERS)
def test_private_names_are_mangled_as_the_compiler_does(class_name, name):
    source = f"class {class_name}:\n    def f(self):\n        return self.{name}"
    try:
        code = compile(source, "<test>", "exec")
    except SyntaxError:  # a keyword
        return
    method = code.co_consts[0].co_consts[1]
    assert method.co_names == (mangled(name, class_name),)


@given(st.text(max_size=30))
def test_any_text_runs_or_fails_in_both_languages_alike(text):
    def outcome(language):
        try:
            return language.execute(f"{text!r}\nx = {text!r}\nx + ''", language.namespace())
        except SyntaxError as error:
            return type(error)

    assert outcome(plain()) == outcome(restricted())


@pytest.mark.parametrize(
    ("code", "value"),
    [("1 + 1", 2), ("x = 3\nx", 3), ("x = 3", None), ("", None), ("# nothing", None), ("None", None), ("'doc'", "doc"),
     ("def f(): return 1\nf()\n", 1), ("class A: n = 1\nA.n += 1", None), ("for i in [1]: i", None), ("1; 2", 2)],
)  # fmt: skip
def test_the_value_is_that_of_the_last_bare_expression(language, code, value):
    namespace = language.namespace()
    assert language.execute(code, namespace) == value
    assert all(name.isidentifier() for name in namespace)


def test_a_session_keeps_its_variables_and_a_fresh_namespace_has_none(language):
    namespace = language.namespace()
    language.execute("x = 40\ndef f(): return x + 2", namespace)
    assert language.execute("f()", namespace) == 42
    with pytest.raises(NameError):
        language.execute("x", language.namespace())


def test_a_failed_program_leaves_no_value_behind(language):
    namespace = language.namespace()
    with pytest.raises(ZeroDivisionError):
        language.execute("x = 1\n1 / 0", namespace)
    assert language.execute("y = x", namespace) is None


def test_tracebacks_show_the_lines_of_the_snippet(language):
    with pytest.raises(KeyError) as caught:
        language.execute("def look(d):\n    return d['missing']\n\nlook({})", language.namespace())
    frames = [frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.filename == FILENAME]
    assert [(frame.lineno, frame.line) for frame in frames] == [(4, "look({})"), (2, "return d['missing']")]


def test_a_syntax_error_names_the_line(language):
    with pytest.raises(SyntaxError) as caught:
        language.execute("x = 1\ny = = 2", language.namespace())
    assert (caught.value.filename, caught.value.lineno, caught.value.text.strip()) == (FILENAME, 2, "y = = 2")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("import os", "there are no files here"),
        ("import maths", "Did you mean 'math'?"),
        ("from math import pie", "cannot import name 'pie' from 'math'"),
        ("import requests", "there is no network here"),
        ("import threading", "use a loop"),
        ("import pickle", "use json, or copy.deepcopy"),
        ("import matplotlib.pyplot as plt", "print the numbers"),
        ("from numpy import loadtxt", "numpy.loadtxt is not available here"),
        ("open('a.txt')", "keep data in the program"),
        ("x = 1\n().__class__.__subclasses__()", "line 2: the attribute .__subclasses__ is not available here"),
        ("async def f(): pass", "write ordinary functions"),
        ("from . import x", "a program is a single file"),
        ("class M(type): pass", "use a class decorator"),
        ("help(len)", "there is no documentation here"),
    ],
)
def test_a_refusal_says_what_is_refused_and_what_to_do(code, advice):
    with pytest.raises((Refused, ImportError)) as caught:
        run(code)
    assert advice in str(caught.value)


def test_many_refusals_are_told_briefly():
    with pytest.raises(Refused, match="and 7 more"):
        run("\n".join(["x.__globals__"] * 10))


def test_a_program_can_handle_a_refused_import_and_attribute():
    code = "try:\n    import os\nexcept ImportError:\n    os = None\n"
    assert run(code + "[os, hasattr(len, '__self__'), getattr(len, '__self__', 1)]") == [None, False, 1]


@pytest.mark.parametrize("name", ["eval", "exec"])
def test_evaluated_text_obeys_the_policy(name):
    with pytest.raises(Refused, match="__subclasses__"):
        run(f"{name}('().__class__.__subclasses__()')")
    with pytest.raises(Refused, match="ordinary names"):
        run(f"{name}('1', {{'_getattr_': 1}})")
    with pytest.raises(Refused, match="takes text"):
        run(f"{name}(b'1')")


def test_built_ins_that_look_at_their_caller_refuse_a_library_as_caller():
    for name in ("globals", "locals", "vars", "dir", "eval"):
        arguments = ", '1'" if name == "eval" else ""
        with pytest.raises(Refused, match="by the program itself"):
            run(f"import contextlib\nwith contextlib.ExitStack() as s:\n    s.callback({name}{arguments})")


def test_a_namespace_shares_no_built_ins_with_the_next_one():
    language = restricted()
    first, second = language.namespace(), language.namespace()
    first["__builtins__"]["sum"] = None
    assert language.execute("sum([1])", second) == 1


def test_the_streams_offer_text_and_nothing_beneath(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1 2\n3\n"))
    run("import sys\nsys.stdout.writelines([sys.stdin.readline(), 'x'])\nprint(sys.stdin.buffer.read())")
    assert out.getvalue() == "1 2\nxb'3\\n'\n"
    for attribute in ("fileno", "detach", "raw", "reconfigure", "_name"):
        with pytest.raises(AttributeError):
            run(f"import sys\nsys.stdout.{attribute}")


def test_library_state_is_not_writable_and_own_state_is():
    with pytest.raises(Refused):
        run("import math\nmath.pi = 3")
    with pytest.raises(Refused):
        run("import decimal\ndecimal.Decimal.x = 1")
    with pytest.raises(Refused):
        run("import random\nrandom.Random()._x = 1")
    assert (
        run("class A: pass\na = A()\na._x = 1\na.y = 2\nA.z = 3\ndef f(): pass\nf.n = 4\na._x + a.y + A.z + f.n") == 10
    )


def test_changes_through_vars_reach_the_object_but_special_names_do_not():
    code = "class A: pass\na = A()\nd = vars(a)\nd.update(x=1, y=2)\ndel d['y']\nd.setdefault('z', 5)\na.x, a.z, d"
    assert run(code) == (1, 5, {"x": 1, "z": 5})
    with pytest.raises(Refused):
        run("class A: pass\nvars(A())['__array_interface__'] = 1")


@pytest.mark.parametrize(
    "thing", [sys, open, eval, compile, io.FileIO, type, run.__code__, sys._getframe(), time.__loader__]
)
def test_nothing_of_the_system_comes_out_of_an_attribute(thing):
    with pytest.raises(AttributeError, match="not available here"):
        vet(thing, "x")


@pytest.mark.parametrize("thing", [3, "s", [].append, len, int, functools.partial(len), lambda: 0, time.sleep])
def test_what_programs_make_and_use_does(thing):
    assert vet(thing, "x") is thing


def test_every_module_with_a_rule_that_is_installed_can_be_imported():
    language = restricted()
    for name in ("math", "collections.abc", "json", "typing", "types", "io", "weakref", "__future__"):
        language.execute(
            f"import {name}" if name != "__future__" else "from __future__ import annotations", language.namespace()
        )
    assert rule_for("os.path") is rule_for("numpy.testing") is rule_for("sympy.testing.runtests") is None


def test_a_package_that_is_not_installed_gives_a_readable_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster", None)
    with pytest.raises(ImportError, match=r"scipy\.cluster"):
        run("import scipy.cluster")


def test_unknown_syntax_is_refused():
    from icrl.runtime.sandbox.policy.transformer import Transformer

    class Novelty(ast.expr):
        lineno = 3

    transformer = Transformer()
    transformer.visit(ast.Expression(Novelty()))
    assert transformer.errors == ["line 3: Novelty is not part of the Python that runs here"]


def test_without_restrictedpython_the_restricted_language_says_what_to_install(monkeypatch):
    find = builtins.__import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "RestrictedPython" else find(name))
    with pytest.raises(MissingExtraError, match=r"icrl\[sandbox\]"):
        restricted()


def test_importing_a_policy_imports_nothing_heavy():
    code = (
        "import sys, icrl.runtime.sandbox.policy as p; p.plain(); "
        "print({'asyncio', 'aiohttp', 'numpy', 'sympy', 'RestrictedPython', 'msgspec'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == "set()\n"


def test_a_warm_language_costs_little():
    language = restricted()
    language.prepare(())
    code = "import math\ndef f(n):\n    return sum(i * i for i in range(n))\nf(10) + math.isqrt(50)"
    spent = []
    for _ in range(50):
        namespace, started = language.namespace(), time.thread_time()
        language.execute(code, namespace)
        spent.append(time.thread_time() - started)
    assert statistics.median(spent) < 0.002  # measured: 0.15 ms


def test_a_facade_is_no_way_to_the_module():
    module = run("import statistics\nstatistics")
    assert isinstance(module, types.ModuleType)
    assert not [value for value in vars(module).values() if isinstance(value, types.ModuleType)]
    with pytest.raises(AttributeError):
        module.sys  # noqa: B018
