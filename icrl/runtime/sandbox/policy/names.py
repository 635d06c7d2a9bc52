"""Which names a program may define, read and write: the data of the policy, without any mechanism."""

from __future__ import annotations

__all__ = [
    "DEFINABLE",
    "FRAME_ATTRIBUTES",
    "GUARDS",
    "HANDLED",
    "READABLE",
    "WRITABLE",
    "is_dunder",
    "mangled",
    "words",
]


def words(text: str) -> list[str]:
    """Return the words of a text: how lists of names are written in this package.

    Example:
        >>> words("open exec")
        ['open', 'exec']
    """
    return text.split()


GUARDS = frozenset({"_attribute_hook_", "_getattr_", "_inplaceattr_", "_metaclass_", "_write_", "_writeprivate_"})
"""Names that the transformed program calls; a program that could bind one would replace a guard."""

_ARITHMETIC = words("add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or")

DEFINABLE = frozenset(
    f"__{name}__"
    for name in words(
        "init new post_init repr str format bytes hash bool len length_hint getitem setitem delitem missing "
        "contains iter next reversed call enter exit eq ne lt le gt ge neg pos abs invert int float complex index "
        "round trunc floor ceil getattr setattr delattr set_name get set delete init_subclass class_getitem copy "
        "deepcopy dir slots match_args"
    )
    + _ARITHMETIC
    + ["r" + name for name in _ARITHMETIC]
    + ["i" + name for name in _ARITHMETIC]
)
"""Special names that a class of the program may define. Left out: whatever runs without being called
(`__del__`), replaces attribute access (`__getattribute__`), lies about types (`__class__`), or feeds C code raw
memory (`__array_interface__`)."""

READABLE = (DEFINABLE - {"__getattr__", "__setattr__", "__delattr__", "__slots__"}) | frozenset(
    {"__annotations__", "__cause__", "__context__", "__dataclass_fields__", "__doc__", "__members__", "__module__"}
    | {"__name__", "__notes__", "__qualname__", "__suppress_context__", "__version__", "__wrapped__"}
)
"""Special attributes that may be read as they are."""

HANDLED = frozenset({"__bases__", "__class__", "__delattr__", "__dict__", "__mro__", "__setattr__", "__slots__"})
"""Special attributes that may be read in a tamed form."""

WRITABLE = frozenset({"__doc__", "__name__", "__qualname__"})
"""Special attributes that may be set, on the program's own functions and classes."""

FRAME_ATTRIBUTES = frozenset(
    words(
        "tb_frame tb_next f_back f_builtins f_code f_generator f_globals f_locals f_trace co_code gi_frame "
        "gi_code gi_yieldfrom cr_await cr_frame cr_code cr_origin ag_await ag_frame ag_code"
    )
)
"""Attributes that lead from a generator, coroutine or traceback to a frame, and from there to everything."""


def is_dunder(name: str) -> bool:
    """Return whether Python itself gives a name its meaning.

    Example:
        >>> is_dunder("__init__"), is_dunder("__balance"), is_dunder("__")
        (True, False, False)
    """
    return len(name) > 4 and name.startswith("__") and name.endswith("__")


def mangled(name: str, class_name: str | None) -> str:
    """Return the name under which `self.__x` is stored inside a class, as the compiler would.

    Args:
        name: An attribute as written.
        class_name: The innermost class around it, or `None`.

    Example:
        >>> mangled("__balance", "_Account"), mangled("__init__", "Account"), mangled("__x", None)
        ('_Account__balance', '__init__', '__x')
    """
    stripped = (class_name or "").lstrip("_")
    if not stripped or not name.startswith("__") or name.endswith("__"):
        return name
    return f"_{stripped}{name}"
