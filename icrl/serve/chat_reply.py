"""An answer in the words of the chat protocol, whole or in chunks.

The model's answer is the message. Tools that the server ran are not `tool_calls`, which a client would try to run
again; they are told in the extension field `icrl`, and reasoning in both fields that clients read. `tool_calls` are
calls of the client's own tools.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from icrl.serve.chat_request import ChatRequest
from icrl.serve.client_tools import client_call_id
from icrl.serve.exchange import Exchange, Told
from icrl.serve.logprobs import said_tokens
from icrl.serve.narration import Heard
from icrl.serve.problem import engine_failed
from icrl.serve.stream import encode_event
from icrl.tokenizer import Tokenizer
from icrl.trajectory import StopReason, Trajectory
from icrl.types import ToolCall

__all__ = ["ChatReply"]

_JSON = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"
_FINISHED = {
    StopReason.ANSWER: "stop",
    StopReason.END_OF_TURN: "stop",
    StopReason.ABORTED: "stop",
    StopReason.CLIENT_CALL: "tool_calls",
}
"""OpenAI's finish reasons; every limit is `length`."""


@dataclass(slots=True)
class _Choice:
    """What was told of one run."""

    run_id: str
    thoughts: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    handed_over: list[dict[str, Any]] = field(default_factory=list)

    def hear(self, heard: Heard) -> dict[str, Any] | None:
        """Remember something and return what it adds to the message."""
        match heard.kind:
            case "thought":
                self.thoughts.append(heard.text)
                return {"reasoning": heard.text, "reasoning_content": heard.text}
            case "said":
                self.words.append(heard.text)
                return {"content": heard.text}
            case "call" | "result":
                return {"icrl": {"tool_calls": [self._called(heard)]}}
            case "handed_over" if heard.call is not None:
                self.handed_over.append(_handed_over(self.run_id, heard.call))
                return {"tool_calls": [{"index": len(self.handed_over) - 1, **self.handed_over[-1]}]}
        return None

    def _called(self, heard: Heard) -> dict[str, Any]:
        """Describe a call that the server ran, or add its outcome; clients join entries of one index."""
        call, result = heard.call, heard.result
        if call is None:
            return {}
        if result is None:
            self.calls[call.id] = {
                "index": len(self.calls),
                "id": call.id,
                "name": call.name,
                "arguments": dict(call.arguments),
            }
            return self.calls[call.id]
        outcome = {"output": result.text, "error": result.error, "wall_s": round(result.wall_s, 6)}
        self.calls[call.id] = self.calls[call.id] | outcome
        return {"index": self.calls[call.id]["index"], **outcome}


class ChatReply:
    """Writes one answer.

    Args:
        model: What clients call the model.
        body: What was asked.
        exchange: The runs.
        tokenizer: Theirs.
    """

    def __init__(self, model: str, body: ChatRequest, exchange: Exchange, tokenizer: Tokenizer) -> None:
        self.exchange = exchange
        """The runs that it tells of."""
        self._body = body
        self._tokenizer = tokenizer
        self._choices = [_Choice(run.id) for run in exchange.runs]
        self._wants_usage = body.stream_options is not None and body.stream_options.include_usage
        self._envelope: dict[str, Any] = {
            "id": f"chatcmpl-{exchange.runs[0].id}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": model,
        }
        # What all chunks begin and end with is encoded once.
        usage = {"usage": None} if self._wants_usage else {}
        before, brackets, behind = encode_event(self._envelope | {"choices": []} | usage).rpartition(b"[]")
        self._before, self._behind = before + brackets[:1], brackets[1:] + behind

    def hear(self, batch: Iterable[Told]) -> None:
        """Remember what was told."""
        for told in batch:
            self._choices[told.choice].hear(told.heard)

    def whole(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """Write the whole answer."""
        choices = [self._whole_choice(index, trajectory) for index, trajectory in enumerate(trajectories)]
        return self._envelope | {"choices": choices, "usage": self._usage(trajectories)}

    def _whole_choice(self, index: int, trajectory: Trajectory) -> dict[str, Any]:
        choice = self._choices[index]
        thought, words = "".join(choice.thoughts) or None, "".join(choice.words)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": words or None if choice.handed_over else words,
            "refusal": None,
            "reasoning": thought,
            "reasoning_content": thought,
            "icrl": _facts(trajectory) | {"tool_calls": list(choice.calls.values())},
        }
        if choice.handed_over:
            message["tool_calls"] = choice.handed_over
        return {"index": index, "message": message, **self._end(index, trajectory)}

    def opening(self) -> bytes:
        """Write the first chunk of every choice."""
        return b"".join(self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self._choices)))

    def tell(self, batch: Iterable[Told]) -> bytes:
        """Write what was told as chunks; nothing where it adds nothing to the message."""
        return b"".join(self._told(batch))

    def _told(self, batch: Iterable[Told]) -> Iterator[bytes]:
        for told in batch:
            delta = self._choices[told.choice].hear(told.heard)
            if delta is not None:
                yield self._chunk(told.choice, delta)

    def ending(self, trajectories: Sequence[Trajectory]) -> bytes:
        """Write the last chunk of every choice, the usage where it is wanted, and the end mark."""
        if any(trajectory.error is not None for trajectory in trajectories):
            return self.failed()
        chunks = [
            self._chunk(index, {"icrl": _facts(trajectory)}, **self._end(index, trajectory))
            for index, trajectory in enumerate(trajectories)
        ]
        if self._wants_usage:
            chunks.append(encode_event(self._envelope | {"choices": [], "usage": self._usage(trajectories)}))
        return b"".join(chunks) + _DONE

    def failed(self) -> bytes:
        """Write the end of a stream that broke."""
        return encode_event({"error": engine_failed().error()}) + _DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}
        return self._before + _JSON.encode(choice) + self._behind

    def _end(self, index: int, trajectory: Trajectory) -> dict[str, Any]:
        """Say why a choice ended, and how likely its words were."""
        cut = index in self.exchange.cut
        reason = "stop" if cut else _FINISHED.get(trajectory.stop_reason, "length")
        return {"finish_reason": reason, "logprobs": self._logprobs(index, trajectory)}

    def _logprobs(self, index: int, trajectory: Trajectory) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        shown = len("".join(self._choices[index].words))
        tokens = said_tokens(self._tokenizer, trajectory, self.exchange.narrators[index].spans, shown)
        return {"content": [_token(text, logprob) for text, logprob in tokens], "refusal": None}

    def _usage(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        usage = self.exchange.usage(trajectories)
        return {
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.sampled,
            "total_tokens": usage.prompt + usage.sampled,
            "prompt_tokens_details": {"cached_tokens": usage.cached},
            "completion_tokens_details": {"reasoning_tokens": usage.thought},
            "icrl": {"observed_tokens": usage.observed},
        }


def _handed_over(run_id: str, call: ToolCall) -> dict[str, Any]:
    """Describe a call that the client has to run."""
    function = {"name": call.name, "arguments": _JSON.encode(call.arguments).decode()}
    return {"id": client_call_id(run_id, call), "type": "function", "function": function}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token that holds only a part of a character has no text of its own.
    whole = list(text.encode()) if "\ufffd" not in text else None
    return {"token": text, "logprob": logprob, "bytes": whole, "top_logprobs": []}


def _facts(trajectory: Trajectory) -> dict[str, Any]:
    """Tell what the protocol has no field for."""
    return {
        "trajectory_id": trajectory.id,
        "stop_reason": str(trajectory.stop_reason),
        "wall_s": round(trajectory.wall_s, 6),
    }
