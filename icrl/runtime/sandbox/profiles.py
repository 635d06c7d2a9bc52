"""What zygotes import in advance, and which of them a program needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["EXTRA_PACKAGES", "PROFILES", "Profile", "ProfileName", "choose"]

ProfileName = Literal["light", "sci"]
"""The standard library only, or numpy, scipy and sympy too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a zygote has done before the first fork."""

    packages: tuple[str, ...] = ()
    """Installed packages that it cannot do without."""
    modules: tuple[str, ...]
    """Modules that are imported."""
    snippets: tuple[str, ...]
    """Programs that are run, so that their caches are filled."""


_STANDARD = """
__future__ abc array ast base64 bisect calendar cmath collections collections.abc contextlib copy ctypes dataclasses
datetime decimal enum fractions functools heapq inspect io itertools json keyword linecache math numbers operator os
pprint random re statistics string struct sys textwrap threading time timeit traceback types typing
"""
_ORDINARY = """
import collections, fractions, itertools, math, random, re, statistics
from dataclasses import dataclass
@dataclass
class Point:
    x: int
    y: int = 0
counts = collections.Counter(w.lower() for w in re.findall(r"\\w+", "one two two"))
try:
    total = sum(math.comb(5, k) * fractions.Fraction(1, k + 1) for k in range(5))
    print(f"{total} {statistics.mean([1, 2, 3]):.3f} {Point(1)} {counts.most_common(1)} {1 / 0}")
except ZeroDivisionError as error:
    print(error)
total
"""
_ARRAYS = """
import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq, linprog, minimize
a = np.array([[2.0, 1.0], [1.0, 3.0]])
print(np.linalg.solve(a, [1.0, 2.0]), np.linalg.eigvals(a), np.linalg.det(a), a @ a, a.mean(axis=0), np.arange(5).sum())
print(np.random.default_rng(0).normal(size=3), brentq(lambda x: x * x - 2, 0, 2), quad(lambda x: x * x, 0, 1)[0])
print(minimize(lambda x: float(((x - 1) ** 2).sum()), np.zeros(2)).x.round(3))
print(linprog([1.0, 1.0], A_ub=[[-1.0, -2.0]], b_ub=[-1.0]).x)
"""
_SYMBOLS = """
import sympy
from sympy import *
x, y = symbols("x y")
n = symbols("n", integer=True, positive=True)
print(solve(x**2 - 5 * x + 6, x), solve([x + y - 3, x - y - 1], [x, y]), solve(x**3 - 2, x), nsolve(cos(x) - x, 1))
print(factor(x**4 - 1), expand((x + y) ** 3), simplify(sin(x) ** 2 + cos(x) ** 2), apart(1 / (x * (x + 1)), x))
print(integrate(x * exp(x), x), integrate(sin(x), (x, 0, pi)), diff(sin(x) * x**2, x), limit(sin(x) / x, x, 0))
print(series(exp(x), x, 0, 4), summation(n**2, (n, 1, y)), Rational(3, 7) + Rational(1, 2), sqrt(8), N(pi, 20))
print(factorint(360), isprime(97), gcd(12, 18), binomial(10, 3), divisors(28), totient(36), mod_inverse(3, 11))
print(Matrix([[1, 2], [3, 4]]).inv(), Matrix([[2, 1], [1, 2]]).eigenvals(), latex(x / 2), cancel((x**2 - 1) / (x - 1)))
print(solve(x**2 + 1 > 5, x), Poly(x**2 + 1, x).degree(), sqrtdenest(sqrt(3 + 2 * sqrt(2))), nsimplify(0.25))
"""

PROFILES: Mapping[ProfileName, Profile] = {
    "light": Profile(modules=tuple(_STANDARD.split()), snippets=(_ORDINARY,)),
    "sci": Profile(
        packages=("numpy", "scipy", "sympy"),
        modules=(
            *_STANDARD.split(),
            *("numpy", "numpy.linalg", "numpy.random", "numpy.fft", "numpy.polynomial"),
            *("scipy", "scipy.integrate", "scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats"),
            *("sympy", "sympy.abc", "sympy.ntheory", "mpmath"),
        ),
        snippets=(_ORDINARY, _ARRAYS, _SYMBOLS),
    ),
}
"""The two kinds of zygotes."""
EXTRA_PACKAGES = ("numpy", "scipy", "sympy", "RestrictedPython")
"""Packages of the `sandbox` extra."""

_SCIENCE = re.compile(r"\b(?:numpy|scipy|sympy|mpmath|pandas|networkx|matplotlib|sklearn|statsmodels|torch)\b")


def choose(code: str) -> ProfileName:
    """Return the profile that suits a program, by the packages that it mentions anywhere.

    Example:
        >>> choose("import numpy as np"), choose("import math")
        ('sci', 'light')
    """
    return "sci" if _SCIENCE.search(code) else "light"
