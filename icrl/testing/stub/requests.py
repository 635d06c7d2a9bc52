"""What clients may send, and how they are refused: in one of the three shapes that the server has for it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Body", "Generate", "Refusal", "Sampling", "parse", "parse_body"]


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        body: What the server says.
    """

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body

    @classmethod
    def said(cls, message: str, status: int = 400) -> Refusal:
        """Refuse in the shape of failed requests."""
        return cls(status, {"error": {"message": message}})


class Sampling(msgspec.Struct, forbid_unknown_fields=True):
    """`sampling_params`; a name that is not here is refused, as by the server."""

    max_new_tokens: int = 128
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    stop_regex: str | list[str] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    n: int = 1
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    stream_interval: int | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    custom_params: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class Generate(msgspec.Struct):
    """Body of `/generate`; names that are not here are ignored, as by the server."""

    input_ids: list[int] | None = None
    sampling_params: msgspec.Raw = msgspec.Raw(b"{}")
    rid: str | None = None
    return_logprob: bool = False
    logprob_start_len: int = -1
    stream: bool = False
    token_ids_logprob: list[int] | None = None
    extra_key: str | None = None
    lora_path: str | None = None


class Body(msgspec.Struct):
    """Body of any control request."""

    rid: str = ""
    abort_all: bool = False
    mode: Literal["abort", "in_place", "retract"] = "abort"
    model_path: str = ""
    weight_version: str | None = None
    new_version: str = ""
    flush_cache: bool = True
    abort_all_requests: bool | None = None
    serialized_named_tensors: list[str] = []
    names: list[str] = []
    dtypes: list[str] = []
    shapes: list[list[int]] = []
    group_name: str = "weight_update_group"
    master_address: str = ""
    master_port: int = 0
    rank_offset: int = 0
    world_size: int = 0
    backend: str = "nccl"
    action: str = "checksum"
    lora_name: str = ""
    lora_path: str = ""


_generate = msgspec.json.Decoder(Generate)
_sampling = msgspec.json.Decoder(Sampling)
_body = msgspec.json.Decoder(Body)


def parse(data: bytes) -> tuple[Generate, Sampling]:
    """Read the body of `/generate`.

    Raises:
        Refusal: It is not JSON, a type is wrong, or a sampling parameter is unknown.
    """
    try:
        request = _generate.decode(data)
    except msgspec.DecodeError as error:
        raise _malformed(error) from None
    try:
        return request, _sampling.decode(request.sampling_params)
    except msgspec.DecodeError as error:
        raise Refusal(400, {"error": str(error)}) from None


def parse_body(data: bytes) -> Body:
    """Read the body of a control request; an empty one is an empty object.

    Raises:
        Refusal: It is not JSON, or a type is wrong.
    """
    try:
        return _body.decode(data or b"{}")
    except msgspec.DecodeError as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> Refusal:
    text = f"1 validation error:\n  {error}"
    return Refusal(400, {"object": "error", "message": text, "type": "Bad Request", "param": None, "code": 400})
