"""Which modules programs may import, and what of them: the data of the policy.

A module that is not named here cannot be imported. Of one that is, a program sees the public names, never the modules
that it happens to have imported itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from icrl.errors import nearest
from icrl.runtime.sandbox.policy import replacements as safe
from icrl.runtime.sandbox.policy.formatting import Formatter
from icrl.runtime.sandbox.policy.kinds import ABCMeta, EnumMeta
from icrl.runtime.sandbox.policy.names import words
from icrl.runtime.sandbox.policy.streams import Console, Reader

__all__ = ["Rule", "rule_for", "why_not"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a program sees of one module."""

    only: frozenset[str] | None = None
    """The visible names; without it, all public ones."""
    denied: frozenset[str] = frozenset()
    """Public names that are withheld."""
    replaced: dict[str, Any] = field(default_factory=dict)
    """Names that give something else than the module has."""


def _only(names: str, **replaced: Any) -> Rule:
    return Rule(only=frozenset(words(names)), replaced=replaced)


def _without(names: str, **replaced: Any) -> Rule:
    return Rule(denied=frozenset(words(names)), replaced=replaced)


_WHOLE = words(
    "__future__ array base64 binascii bisect calendar cmath collections collections.abc colorsys csv datetime "
    "decimal difflib fractions graphlib hashlib heapq html itertools keyword math numbers pprint random re "
    "secrets statistics struct textwrap time unicodedata zlib numpy.char numpy.exceptions numpy.fft "
    "numpy.linalg numpy.ma numpy.polynomial numpy.polynomial.chebyshev numpy.polynomial.polynomial "
    "numpy.strings numpy.typing scipy.cluster scipy.cluster.hierarchy scipy.cluster.vq scipy.constants "
    "scipy.fft scipy.integrate scipy.interpolate scipy.linalg scipy.ndimage scipy.optimize scipy.signal "
    "scipy.sparse.csgraph scipy.sparse.linalg scipy.spatial scipy.spatial.distance scipy.special scipy.stats "
    "mpmath"
)

_NUMPY_FILES = "DataSource fromfile fromregex genfromtxt load loadtxt memmap save savetxt savez savez_compressed"
_NUMPY_OTHER = "ctypeslib f2py from_dlpack get_include info lib show_config show_runtime test testing"
_SYMPY = "doctest init_printing init_session pager_print plot_backends preview print_gtk source test textplot vectorize"
_SYMPY_PACKAGES = words(
    "abc algebras assumptions calculus codegen.rewriting combinatorics concrete core crypto diffgeom discrete "
    "functions geometry holonomic integrals logic matrices ntheory physics.units physics.mechanics "
    "physics.vector polys series sets simplify solvers stats strategies tensor vector utilities.iterables "
    "utilities.lambdify parsing.sympy_parser printing.latex printing.pretty printing.str printing.repr"
)

_RULES: dict[str, Rule] = {name: Rule() for name in _WHOLE} | {
    "abc": _without("", ABCMeta=ABCMeta),
    "contextlib": _only(
        "AbstractContextManager ContextDecorator ExitStack closing contextmanager nullcontext suppress",
        redirect_stderr=safe.redirect_stderr,
        redirect_stdout=safe.redirect_stdout,
    ),
    "copy": _only("copy deepcopy replace Error"),
    "dataclasses": _without("make_dataclass"),
    "enum": _without("global_enum", EnumMeta=EnumMeta, EnumType=EnumMeta),
    "functools": _without(
        "singledispatchmethod", singledispatch=safe.singledispatch, update_wrapper=safe.update_wrapper, wraps=safe.wraps
    ),
    "io": _only("BytesIO StringIO"),
    "json": _only("JSONDecodeError JSONDecoder JSONEncoder dump dumps load loads"),
    "operator": _without("", attrgetter=safe.attrgetter, methodcaller=safe.methodcaller),
    "queue": _only("Empty Full LifoQueue PriorityQueue Queue SimpleQueue"),
    "string": _without("", Formatter=Formatter),
    "sys": _only(
        "byteorder exit float_info get_int_max_str_digits getrecursionlimit getsizeof int_info intern maxsize"
        " maxunicode platform set_int_max_str_digits version version_info",
        argv=[""],
        setrecursionlimit=safe.set_recursion_limit,
        stderr=Console("stderr"),
        stdin=Reader(),
        stdout=Console("stdout"),
    ),
    "timeit": _only("default_timer"),
    "traceback": _only("format_exc print_exc"),
    "types": _only("FunctionType GeneratorType LambdaType MappingProxyType MethodType NoneType"),
    "typing": _without("ForwardRef evaluate_forward_ref get_type_hints"),
    "uuid": _only("NAMESPACE_DNS NAMESPACE_OID NAMESPACE_URL NAMESPACE_X500 UUID uuid3 uuid4 uuid5"),
    "warnings": _only("catch_warnings filterwarnings resetwarnings simplefilter warn"),
    "weakref": _only("WeakKeyDictionary WeakSet WeakValueDictionary ref"),
    "numpy": _without(f"{_NUMPY_FILES} {_NUMPY_OTHER}"),
    "numpy.lib": _only(""),
    "numpy.lib.stride_tricks": _only("broadcast_arrays broadcast_shapes broadcast_to sliding_window_view"),
    "numpy.random": _without("test"),
    "scipy": _without("LowLevelCallable test show_config"),
    "scipy.sparse": _without("load_npz save_npz"),
    "sympy": _without(_SYMPY, lambdify=safe.lambdify),
    "sympy.utilities": _only("", lambdify=safe.lambdify),
    "sympy.utilities.lambdify": _only("", lambdify=safe.lambdify),
    "sympy.parsing": _only(""),
    "sympy.printing": _without("pager_print preview print_gtk"),
}

_WHY_NOT = {
    "there are no files here; keep data in the program": "glob os pathlib shutil tempfile zipfile",
    "there is no network here": "http requests socket ssl urllib",
    "no other process or thread can be started here; use a loop": "asyncio concurrent multiprocessing subprocess "
    "threading",
    "there is no display here; print the numbers": "matplotlib plotly seaborn turtle",
    "use json, or copy.deepcopy": "marshal pickle shelve",
    "it reaches into the interpreter": "ast builtins code ctypes dis gc importlib inspect pkgutil runpy signal",
}


def rule_for(module: str) -> Rule | None:
    """Return the rule of a module by its full name, `None` if it may not be imported.

    Example:
        >>> rule_for("os") is None, rule_for("numpy.linalg") is None
        (True, False)
    """
    known = _RULES.get(module)
    if known is None and module.startswith("sympy."):
        inner = module.removeprefix("sympy.")
        if any(inner == package or inner.startswith(package + ".") for package in _SYMPY_PACKAGES):
            return _RULES.setdefault(module, Rule(denied=_RULES["sympy"].denied, replaced=_RULES["sympy"].replaced))
    return known


def why_not(module: str) -> str:
    """Return what to tell a model that imports a module without a rule.

    Example:
        >>> why_not("pickle")
        'the module pickle is not available here: use json, or copy.deepcopy'
    """
    root = module.partition(".")[0]
    reasons = [reason for reason, roots in _WHY_NOT.items() if root in words(roots)]
    if reasons:
        return f"the module {module} is not available here: {reasons[0]}"
    available = sorted(name for name in _RULES if "." not in name and not name.startswith("_"))
    return f"the module {module} is not available here.{nearest(module, available)} Available: {', '.join(available)}"
