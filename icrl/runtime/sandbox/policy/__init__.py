"""Language policies: which Python a sandboxed process runs.

`restricted` tells a model early and in words what it cannot have; `plain` runs anything. Neither is a boundary. What
contains a program is the process around it (`icrl.runtime.sandbox.Sandbox`).
"""

from __future__ import annotations

from icrl.runtime.sandbox.language import Language

__all__ = ["plain", "restricted"]


def restricted() -> Language:
    """Return the restricted language.

    Raises:
        MissingExtraError: RestrictedPython is not installed.

    Example:
        >>> language = restricted()
        >>> language.execute("sum(n * n for n in range(4))", language.namespace())
        14
    """
    from icrl.runtime.sandbox.policy.restricted_language import Restricted

    return Restricted()


def plain() -> Language:
    r"""Return Python as it is.

    Example:
        >>> language = plain()
        >>> language.execute("x = 2\nx ** 10", language.namespace())
        1024
    """
    from icrl.runtime.sandbox.policy.plain_language import Plain

    return Plain()
