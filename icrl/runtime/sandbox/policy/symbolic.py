"""Checks on the text that sympy and mpmath evaluate: `sympify("...")`, what `lambdify` writes, constants to identify.

All end in `eval` or `exec` with Python's own built-ins in reach, and the text can come from a program: as a string, or
as the name of a symbol. The checks sit where the text is evaluated, so that no way there goes around them.
"""

from __future__ import annotations

import ast
import functools
import importlib
from typing import Any

from icrl.runtime.sandbox.language import Refused
from icrl.runtime.sandbox.policy.names import is_dunder, words

__all__ = ["check_expression", "check_function", "guard_mpmath", "guard_sympy"]

_FORBIDDEN = frozenset(
    words(
        "breakpoint classmethod compile delattr dir eval exec exit getattr globals hasattr help input locals "
        "memoryview object open print property quit setattr staticmethod super type vars DataSource fromfile "
        "fromregex genfromtxt load loadtxt memmap save savetxt savez savez_compressed ctypeslib f2py lambdify "
        "preview source test doctest parse_expr autowrap ufuncify codegen sys os"
    )
)
_EXPRESSION = (
    ast.Expression, ast.Call, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp,
    ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Subscript, ast.Slice, ast.keyword, ast.Starred, ast.expr_context,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_FUNCTION = (
    *_EXPRESSION, ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.Delete, ast.Expr,
    ast.Attribute, ast.Lambda, ast.ListComp, ast.GeneratorExp, ast.comprehension,
)  # fmt: skip


def check_expression(source: str) -> None:
    """Check the text of an expression.

    Raises:
        Refused: It is more than arithmetic, calls and collections.
        SyntaxError: It is not an expression.

    Example:
        >>> check_expression("Integer(2)*Symbol('x')")
        >>> check_expression("().__class__")
        Traceback (most recent call last):
        icrl.runtime.sandbox.language.Refused: sympy may not evaluate an Attribute in a string; write it as Python
    """
    _check(ast.parse(source, mode="eval"), _EXPRESSION)


def check_function(source: str) -> None:
    """Check the text of a function that `lambdify` wrote.

    Raises:
        Refused: A symbol's name carries code, or the name of a function that reads files or runs code.
    """
    _check(ast.parse(source), _FUNCTION)


def _check(tree: ast.AST, allowed: tuple[type[ast.AST], ...]) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            raise Refused(f"sympy may not evaluate an {type(node).__name__} in a string; write it as Python")
        name = str(getattr(node, "id", "") or getattr(node, "attr", ""))
        private = isinstance(node, ast.Attribute) and name.startswith("_")
        if private or is_dunder(name) or name in _FORBIDDEN:
            raise Refused(f"sympy may not evaluate {name!r} in a string or a symbol's name; write it as Python")


@functools.cache
def guard_sympy() -> None:
    """Put the checks into sympy, once per process."""
    sympy_parser: Any = importlib.import_module("sympy.parsing.sympy_parser")
    writer: Any = importlib.import_module("sympy.utilities.lambdify")  # its package has a function of that name

    evaluate, hold, write = sympy_parser.eval_expr, sympy_parser.evaluateFalse, writer._EvaluatorPrinter.doprint

    def checked_eval(code: Any, local_dict: Any, global_dict: Any) -> Any:
        if isinstance(code, str):
            check_expression(code)
        return evaluate(code, local_dict, global_dict)

    def checked_hold(source: str) -> Any:
        check_expression(source)
        return hold(source)

    def checked_write(self: Any, *args: Any, **kwargs: Any) -> str:
        source: str = write(self, *args, **kwargs)
        check_function(source)
        return source

    sympy_parser.eval_expr, sympy_parser.evaluateFalse = checked_eval, checked_hold
    writer._EvaluatorPrinter.doprint = checked_write


@functools.cache
def guard_mpmath() -> None:
    """Put the check into mpmath, once per process."""
    methods: Any = importlib.import_module("mpmath.identification").IdentificationMethods
    mpmath: Any = importlib.import_module("mpmath")
    identify = methods.identify

    def checked(ctx: Any, x: Any, constants: Any = (), *args: Any, **kwargs: Any) -> Any:
        texts = constants if isinstance(constants, dict) else list(constants)
        for text in () if isinstance(texts, dict) else texts:
            check_expression(text)
        return identify(ctx, x, texts, *args, **kwargs)

    methods.identify = checked
    mpmath.identify = mpmath.mp.identify
