"""How busy a server is."""

from __future__ import annotations

import msgspec

from icrl.errors import EngineError
from icrl.runtime.engines.protocol import EngineLoad

__all__ = ["read_load"]


class _Rank(msgspec.Struct):
    """One scheduler of the server; there are several with data parallelism."""

    num_running_reqs: int
    num_waiting_reqs: int
    token_usage: float = 0.0


class _Loads(msgspec.Struct):
    """Of `/v1/loads`."""

    loads: list[_Rank]


def read_load(data: bytes, *, engine: str) -> EngineLoad:
    """Read the answer of `/v1/loads`: requests are summed over the server's schedulers, the fullest cache counts.

    Raises:
        EngineError: It is something else.

    Example:
        >>> read_load(b'{"loads":[{"num_running_reqs":3,"num_waiting_reqs":1,"token_usage":0.5}]}', engine="e")
        EngineLoad(running=3, waiting=1, kv_usage=0.5)
    """
    try:
        ranks = msgspec.json.decode(data, type=_Loads).loads
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineError(f"/v1/loads is not what an SGLang server says: {error}", engine=engine) from error
    return EngineLoad(
        running=sum(rank.num_running_reqs for rank in ranks),
        waiting=sum(rank.num_waiting_reqs for rank in ranks),
        kv_usage=max((rank.token_usage for rank in ranks), default=0.0),
    )
