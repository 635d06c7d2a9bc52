"""How a client may ask for tokens to be drawn."""

from __future__ import annotations

from icrl.errors import DataError
from icrl.serve.problem import invalid
from icrl.types import SamplingParams

__all__ = ["read_sampling"]

MAX_TEMPERATURE = 2.0


def read_sampling(temperature: float | None, top_p: float | None) -> SamplingParams:
    """Check temperature and top-p; either is 1 where it is not given, as the protocols have it.

    Raises:
        Problem: One is out of range; the message names it.

    Example:
        >>> read_sampling(None, 0.9).temperature
        1.0
    """
    if temperature is not None and temperature > MAX_TEMPERATURE:
        raise invalid("temperature", f"must be from 0 to 2, not {temperature}")
    try:
        return SamplingParams(
            temperature=1.0 if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
        )
    except DataError as error:
        param, _, problem = str(error).partition(": ")
        raise invalid(param, problem) from None
