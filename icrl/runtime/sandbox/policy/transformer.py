"""The language of the policy: which syntax may run, and where the guards are called.

RestrictedPython's own transformer refuses much that models write (`x[i] += 1`, `self._x`, annotations, `match`) and
guards iteration and subscripts, which cost time and fence nothing that this policy relies on. This subclass keeps
its principle that unknown syntax is refused, and guards attributes and imports only.
"""

# ruff: noqa: N802, N815 - ast.NodeVisitor gives the methods their names
from __future__ import annotations

import ast
from typing import Any

from RestrictedPython.transformer import IOPERATOR_TO_STR, RestrictingNodeTransformer

from icrl.runtime.sandbox.policy.names import (
    DEFINABLE,
    FRAME_ATTRIBUTES,
    GUARDS,
    HANDLED,
    READABLE,
    WRITABLE,
    is_dunder,
    mangled,
)

__all__ = ["Transformer"]

_READABLE_NAMES = (DEFINABLE - {"__getattr__"}) | {"__name__", "__doc__"}
_READABLE_ATTRIBUTES = READABLE | HANDLED
_UNMATCHABLE = FRAME_ATTRIBUTES | {"format", "format_map", "obj"}  # a pattern reads attributes without a guard


class Transformer(RestrictingNodeTransformer):  # type: ignore[misc]  # it is not analysed
    """Checks a program and inserts guards: `a.b` becomes `_getattr_(a, "b")`, `a.b = c` becomes `_write_(a).b = c`.

    `errors` holds the refusals afterwards. One object is used for one program.
    """

    def __init__(self) -> None:
        super().__init__()
        self._classes: list[str] = []

    def error(self, node: ast.AST, info: str) -> None:
        """Note a refusal with its line."""
        self.errors.append(f"line {getattr(node, 'lineno', '?')}: {info}")

    def not_allowed(self, node: ast.AST) -> None:
        """Refuse syntax that is unknown here."""
        self.error(node, f"{type(node).__name__} is not part of the Python that runs here")

    def check_name(self, node: ast.AST, name: str | None, allow_magic_methods: bool = False) -> None:
        """Refuse to bind a name of the guards or a special name that Python would act on."""
        if name is None:
            return
        definable = DEFINABLE if allow_magic_methods else DEFINABLE - {"__getattr__"}
        if name in GUARDS:
            self.error(node, f"the name {name} is reserved here; choose another")
        elif is_dunder(name) and name not in definable:
            self.error(node, f"the special name {name} is not available here")

    def _keep(self, node: Any) -> Any:
        return self.node_contents_visit(node)

    # Syntax that needs no guard beyond its parts.

    visit_Subscript = visit_With = visit_For = visit_comprehension = visit_Assign = _keep
    visit_Nonlocal = visit_TryStar = visit_AnnAssign = _keep
    visit_Match = visit_match_case = visit_MatchSingleton = visit_MatchSequence = visit_MatchOr = _keep

    def visit_Call(self, node: ast.Call) -> Any:
        """Keep a call as it is; what is called was read through a guard."""
        return self.node_contents_visit(node)

    def visit_Name(self, node: ast.Name) -> Any:
        """Check a variable."""
        if not (isinstance(node.ctx, ast.Load) and node.id in _READABLE_NAMES):
            self.check_name(node, node.id)
        return node

    def visit_Global(self, node: ast.Global) -> Any:
        """Check what becomes global."""
        for name in node.names:
            self.check_name(node, name)
        return node

    # Attributes.

    def _call(self, node: ast.expr, guard: str, *arguments: ast.expr) -> ast.Call:
        call = ast.Call(ast.Name(guard, ast.Load()), list(arguments), [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def _check_attribute(self, node: ast.AST, name: str, allowed: frozenset[str]) -> None:
        if name in FRAME_ATTRIBUTES or (is_dunder(name) and name not in allowed):
            self.error(node, f"the attribute .{name} is not available here")

    def _constant(self, name: str) -> ast.Constant:
        return ast.Constant(mangled(name, self._classes[-1] if self._classes else None))

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """Guard an attribute."""
        node = self.node_contents_visit(node)
        if isinstance(node.ctx, ast.Load):
            self._check_attribute(node, node.attr, _READABLE_ATTRIBUTES)
            return self._call(node, "_getattr_", node.value, self._constant(node.attr))
        self._check_attribute(node, node.attr, WRITABLE)
        guard = "_writeprivate_" if node.attr.startswith("_") else "_write_"
        node.value = self._call(node.value, guard, node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        """Read, operate on and write an attribute through guards, in CPython's order; leave other targets."""
        if not isinstance(node.target, ast.Attribute):
            return self.node_contents_visit(node)
        target = node.target
        self._check_attribute(target, target.attr, WRITABLE)
        operator = ast.Constant(IOPERATOR_TO_STR[type(node.op)])
        value = self.visit(node.value)
        read = self._call(target, "_inplaceattr_", self.visit(target.value), self._constant(target.attr), operator)
        call = ast.copy_location(ast.Call(read, [value], []), node)
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))

    # Patterns read attributes in C, so that the names are all that can be checked.

    def visit_MatchValue(self, node: ast.MatchValue) -> Any:
        """Allow constants and plain dotted names."""
        for part in ast.walk(node.value):
            if isinstance(part, ast.Attribute) and (part.attr in _UNMATCHABLE or part.attr.startswith("_")):
                self.error(node, f"a pattern may not read .{part.attr}")
            elif isinstance(part, ast.Name):
                self.visit_Name(part)
        return node

    def visit_MatchClass(self, node: ast.MatchClass) -> Any:
        """Check the attributes that a class pattern reads."""
        self.visit_MatchValue(ast.copy_location(ast.MatchValue(node.cls), node))
        for name in node.kwd_attrs:
            if name in _UNMATCHABLE or name.startswith("_"):
                self.error(node, f"a pattern may not read .{name}")
        for field in ("patterns", "kwd_patterns"):
            setattr(node, field, [self.visit(pattern) for pattern in getattr(node, field)])
        return node

    def visit_MatchMapping(self, node: ast.MatchMapping) -> Any:
        """Check keys and the name of the rest."""
        self.check_name(node, node.rest)
        for key in node.keys:
            self.visit_MatchValue(ast.copy_location(ast.MatchValue(key), node))
        node.patterns = [self.visit(pattern) for pattern in node.patterns]
        return node

    def _named_pattern(self, node: Any) -> Any:
        self.check_name(node, node.name)
        return self.node_contents_visit(node)

    visit_MatchStar = visit_MatchAs = _named_pattern

    # Type parameters and aliases (3.12).

    visit_TypeVar = visit_ParamSpec = visit_TypeVarTuple = _named_pattern
    visit_TypeAlias = _keep

    # Imports.

    def check_import_names(self, node: ast.Import | ast.ImportFrom) -> ast.AST:
        """Check the names that an import binds; what may be imported is decided when it runs."""
        if getattr(node, "level", 0):
            self.error(node, "relative imports are not possible here: a program is a single file")
        if getattr(node, "is_lazy", 0):
            self.error(node, "lazy imports are not available here")
        for alias in node.names:
            if "__" in alias.name:
                self.error(node, f"{alias.name} may not be imported here")
            self.check_name(node, alias.asname or alias.name.partition(".")[0])
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        """Check an import, `from __future__` included."""
        return node if node.module == "__future__" else self.check_import_names(node)

    # Functions and classes.

    def visit_arg(self, node: ast.arg) -> Any:
        """Drop a written-out annotation: evaluating it later would bypass the guards."""
        if node.annotation is not None and not _evaluated(node.annotation):
            node.annotation = None
        return self.node_contents_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        """Check names and arguments; wrap `__getattr__` so that C code cannot ask it for special attributes."""
        self.check_name(node, node.name, allow_magic_methods=True)
        self.check_function_argument_names(node)
        if node.returns is not None and not _evaluated(node.returns):
            node.returns = None
        node = self.node_contents_visit(node)
        if node.name == "__getattr__":
            hook = ast.copy_location(ast.Name("_attribute_hook_", ast.Load()), node)
            node.decorator_list.insert(0, hook)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        """Check the name, let a guard choose the metaclass, and remember the class for private names."""
        self.check_name(node, node.name)
        for keyword in node.keywords:
            if keyword.arg is None:
                self.error(node, "**arguments are not available in a class statement")
        self._classes.append(node.name)
        node = self.node_contents_visit(node)
        self._classes.pop()
        for keyword in node.keywords:
            if keyword.arg == "metaclass":
                keyword.value = self._call(keyword.value, "_metaclass_", keyword.value)
        return node

    def _asynchronous(self, node: ast.AST) -> None:
        self.error(node, "async and await are not available here; write ordinary functions")

    visit_AsyncFunctionDef = visit_Await = visit_AsyncFor = visit_AsyncWith = _asynchronous


def _evaluated(annotation: ast.expr) -> bool:
    return not any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(annotation))
