"""Conversations of dialects that write tool use as plain text, results included, into turns of any chat template."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

from icrl.runtime.dialects.segments import after_turn, conversation, prompt_segments, separator
from icrl.tokenizer import Rendered, Tokenizer
from icrl.trajectory import Role, Segment
from icrl.types import Message

__all__ = ["answer_text", "inline_prompt", "user_turn"]


def inline_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    opening: str,
    examples: Sequence[str],
    query_prefix: str,
    write: Callable[[Message], str],
) -> tuple[Segment, ...]:
    """Render a conversation whose first user message also holds instruction, worked examples and system text.

    Args:
        tokenizer: Renders and encodes.
        messages: The conversation.
        opening: The instruction.
        examples: The worked examples, in the form of the dialect.
        query_prefix: Stands before every user message.
        write: Writes an assistant's or a tool's message; those that follow each other are joined as they are.

    Raises:
        DataError: The conversation ends in neither a user's nor a tool's message, or the template refuses it.
    """
    system, asked, since = conversation(messages)
    head = "".join((opening, *examples, f"{system}\n\n" if system else ""))
    chat = _chat(head, tuple(_one_by_one(asked)), query_prefix, write)
    query = len(chat[-1].content) - len(query_prefix + asked[-1].content)
    cuts = [(0, at) for at in accumulate(map(len, examples), initial=len(opening))]
    demos: list[Role] = ["demo"] * len(examples)
    history: list[Role] = ["history"] if system or len(asked) > 1 else []
    cuts += [(len(chat) - 1, query)] * len(history)
    # The model's turn is open, so that what it has written and been told since is appended as it was then.
    told = [Rendered() + write(message) for message in _one_by_one(since)]
    later: list[Role] = ["history"] * len(told)
    parts = (*tokenizer.render(chat, cuts=cuts), *told)
    return prompt_segments(tokenizer, parts, ["system", *demos, *history, "query", *later])


def _one_by_one(turns: Sequence[Message]) -> Iterator[Message]:
    """Put the result of each call behind it, as a turn makes one call."""
    left = deque(turns)
    while left:
        message = left.popleft()
        if len(message.tool_calls) < 2:
            yield message
            continue
        for index, call in enumerate(message.tool_calls):
            yield replace(message, content="" if index else message.content, tool_calls=(call,))
            if left and left[0].role == "tool":
                yield left.popleft()


def answer_text(text: str, marks: Iterable[str]) -> str:
    """Write what an assistant said as the model would have: as an answer, unless it holds marks already.

    Example:
        >>> answer_text("113", ["<answer>"]), answer_text("<answer>113</answer>", ["<answer>"])
        ('<answer> 113 </answer>', '<answer>113</answer>')
    """
    return text if not text or any(mark in text for mark in marks) else f"<answer> {text} </answer>"


def _chat(head: str, turns: Sequence[Message], query_prefix: str, write: Callable[[Message], str]) -> list[Message]:
    """Join each assistant turn with its calls and results, and put the head into the first user message."""
    chat: list[Message] = [] if turns[0].role == "user" else [Message(role="user", content="")]
    for message in turns:
        if message.role == "user":
            chat.append(Message(role="user", content=query_prefix + message.content))
            continue
        text = write(message)
        if chat[-1].role == "assistant":
            text = chat.pop().content + text
        chat.append(Message(role="assistant", content=text))
    chat[0] = Message(role="user", content=head + chat[0].content)
    return chat


def user_turn(tokenizer: Tokenizer, told: Sequence[Segment], turn: int) -> tuple[Segment, ...]:
    """Put results into a user turn of their own and open the model's next one; the model had ended its last."""
    before, after = _between_turns(tokenizer)
    return (*separator(tokenizer, before, turn), *told, *separator(tokenizer, after, turn))


@lru_cache(maxsize=16)
def _between_turns(tokenizer: Tokenizer) -> tuple[Rendered, Rendered]:
    """Return what the template writes between an assistant's turn and a user's text, and between that and the next."""
    user, assistant = Message(role="user", content="?"), Message(role="assistant", content="!")
    before, question = tokenizer.render([user, assistant, user], cuts=[(2, 0)])
    return after_turn(tokenizer, before)[1], question.split(1)[1]
