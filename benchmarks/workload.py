"""The workload that every measurement of the rollout hot path uses: a large vocabulary, two calls, then an answer.

A trajectory has a prompt of about 508 tokens with two declared tools, and three turns: a search, a program, an
answer. A turn samples lognormal(140, 0.5) tokens between 48 and 1000; a result has lognormal(220, 0.6) words between
20 and 2000. The vocabulary is a byte-level BPE of 150,000 entries with the pre-tokenisation of Qwen2, trained once on
the Python sources of the machine and kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import sysconfig
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from icrl.runtime.dialect import find_dialect
from icrl.runtime.tools.tool import Tool, tool
from icrl.tokenizer import ChatTokenizer, Encoder
from icrl.trajectory import FinishReason, Generation
from icrl.types import Limits, Task

__all__ = ["LIMITS", "TURNS", "Episode", "Reply", "Workload", "large_tokenizer"]

TURNS = 3
"""Engine calls of a trajectory."""
LIMITS = Limits(max_tokens=16_384, max_observation_tokens=4096)
"""Bounds that the workload never reaches."""

_AT_ONCE = 1 << 16
_VOCABULARY = 150_000
_CORPUS_CHARACTERS = 60_000_000
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SPOKEN = ("<tool_call>", "</tool_call>")
_TEMPLATE = """\
{%- set opening = messages[0].content if messages[0].role == 'system' else 'You are a careful assistant.' %}
{{- '<|im_start|>system\\n' + opening }}
{%- if tools %}
{{- '\\n\\n# Tools\\n\\nYou may call these functions while you answer, each declared in a line of JSON.\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nTo call one, write its name and arguments as a JSON object within tags:\\n<tool_call>\\n' }}
{{- '{"name": <the name>, "arguments": <an object>}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the engine says in one turn, compactly; `generation` makes the objects that a real engine would make."""

    ids: array[int]
    """[T] token ids."""
    logprobs: array[float]
    """[T] log-probabilities."""
    finish_reason: FinishReason
    """Why it ends."""

    def generation(self) -> Generation:
        """Return new objects, as from a decoded answer."""
        return Generation(ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.finish_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One scripted trajectory."""

    task: Task
    """What is asked."""
    replies: tuple[Reply, ...]
    """What the engine says, turn by turn."""
    results: tuple[str, ...]
    """What the tools answer."""


class Workload:
    """Scripted trajectories, and the tools that they call.

    Args:
        trajectories: How many.
        prompt_tokens: Tokens of a prompt, tool declarations included.
        dialect: `hermes` or `xml`.
        members: Consecutive trajectories that ask the same, as the members of a group do.
        seed: Selects the texts.
        tokenizer: The vocabulary; `large_tokenizer()` if not given.
    """

    def __init__(
        self,
        *,
        trajectories: int = 256,
        prompt_tokens: int = 508,
        dialect: str = "hermes",
        members: int = 8,
        seed: int = 0,
        tokenizer: ChatTokenizer | None = None,
    ) -> None:
        self.tokenizer = tokenizer or large_tokenizer()
        self.dialect = dialect
        self.members = members
        self._answers: dict[str, str] = {}
        self._draw = random.Random(f"{seed} {prompt_tokens} {dialect}")
        self.tools = _tools(self._answers)
        """A search and an interpreter, which answer at once as scripted."""
        self.instruction = self._instruction(prompt_tokens)
        """What opens every prompt; takes up what is above a question of 500 tokens."""
        declared = self._prompt_length("?")
        tasks = [self._task(i, prompt_tokens - declared) for i in range(-(-trajectories // members))]
        self.episodes = self._episodes([tasks[i // members] for i in range(trajectories)])
        """The trajectories."""

    def _instruction(self, prompt_tokens: int) -> str:
        opening = "Answer the question. You can {tags}.\n{tools}" if self.dialect == "xml" else "Answer carefully."
        return f"{opening}\n{self._prose(round((prompt_tokens - 1000) * 0.96))}" if prompt_tokens > 1000 else opening

    def _prompt_length(self, query: str) -> int:
        rendered = find_dialect(self.dialect).prompt(
            self.tokenizer,
            Task(query=query).messages,
            tools=[tool.spec for tool in self.tools],
            instruction=self.instruction,
        )
        return sum(len(segment.ids) for segment in rendered)

    def _task(self, number: int, tokens: int) -> Task:
        return Task(query=f"{self._prose(round(tokens * 0.94))} Task {number}?", id=str(number))

    def _prose(self, words: int) -> str:
        """Write sentences of words that are as frequent as in Python's manual."""
        vocabulary, weights = _words()
        chosen = self._draw.choices(vocabulary, cum_weights=weights, k=max(1, words))
        for at in range(0, len(chosen), 20):
            chosen[at] = chosen[at].capitalize()
            if at:
                chosen[at - 1] += "."
        return " ".join(chosen) + "."

    def _episodes(self, tasks: Sequence[Task]) -> list[Episode]:
        """Write all texts, encode them at once, and hand them out again."""
        texts = [self._said(i, turn) for i in range(len(tasks)) for turn in range(TURNS)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        episodes = []
        for number, task in enumerate(tasks):
            replies = tuple(self._reply(next(encoded)) for _ in range(TURNS))
            results = tuple(self._result(number, turn) for turn in range(TURNS - 1))
            episodes.append(Episode(task=task, replies=replies, results=results))
        return episodes

    def _said(self, number: int, turn: int) -> str:
        length = min(1000, max(48, round(self._draw.lognormvariate(4.94, 0.5))))
        name = ("search", "python", "answer")[turn]
        argument = (_query(number), _program(number), f"{number}")[turn]
        thought = self._prose(round((length - 30) * 0.95))
        if self.dialect == "xml":
            return f"<think> {thought} </think>\n<{name}> {argument} </{name}>"
        if turn == TURNS - 1:
            return f"{thought} The answer is {argument}, as the program printed it and as the passages say too."
        called = {"name": name, "arguments": {("query", "code")[turn]: argument}}
        return f"{thought}\n<tool_call>\n{json.dumps(called)}\n</tool_call>"

    def _reply(self, ids: list[int]) -> Reply:
        ended = self.dialect == "hermes"
        ids = [*ids, self.tokenizer.pad_id + 2] if ended else ids
        logprobs = array("d", (-self._draw.expovariate(2.0) for _ in ids))
        return Reply(ids=array("i", ids), logprobs=logprobs, finish_reason="eos" if ended else "stop")

    def _result(self, number: int, turn: int) -> str:
        words = min(2000, max(20, round(self._draw.lognormvariate(5.39, 0.6))))
        text = self._answers[(_query, _program)[turn](number)] = self._prose(words)
        return text


def _query(number: int) -> str:
    return f"minutes of the meeting about bridge {number} over the river"


def _program(number: int) -> str:
    return f"total = sum(range({number}))\nprint(total)"


def _tools(answers: dict[str, str]) -> tuple[Tool, ...]:
    @tool(max_concurrency=_AT_ONCE)
    async def search(query: str, limit: int = 5) -> str:
        """Search a collection of documents and return the passages that fit best, with their titles.

        Args:
            query: What to look for, in words; names and numbers help.
            limit: How many passages to return at most.
        """
        return answers[query]

    @tool(max_concurrency=_AT_ONCE)
    async def python(code: str, timeout: float = 10.0) -> str:  # noqa: ASYNC109 - the model's argument
        """Run a program in a fresh interpreter and return what it prints, or the error that ended it.

        Args:
            code: The whole program; print what you want to see.
            timeout: Seconds after which it is ended.
        """
        return answers[code]

    return search, python


@cache
def _words() -> tuple[list[str], list[float]]:
    """Return the words of Python's manual, and their cumulative frequencies."""
    from pydoc_data.topics import topics

    found = Counter(re.findall(r"\b[a-z]{2,12}\b", "\n".join(topics.values()))).most_common(4000)
    total, weights = 0.0, []
    for _, count in found:
        total += count
        weights.append(total)
    return [word for word, _ in found], weights


@cache
def large_tokenizer(*, encoder: Encoder = "huggingface") -> ChatTokenizer:
    """Load the large vocabulary; the first call on a machine trains it, which takes about 15 s of one core.

    Args:
        encoder: Which encoder to use; both give the same ids.
    """
    cached = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "icrl" / "benchmarks"
    version = ".".join(map(str, (_VOCABULARY, *sys.version_info[:2])))
    directory = cached / f"bpe-{version}"
    if not directory.is_dir():
        cached.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached) as half:
            train_tokenizer(Path(half), _sources())
            shutil.copytree(half, directory, dirs_exist_ok=True)
    return ChatTokenizer.load(directory, encoder=encoder)


def _sources() -> Iterator[str]:
    """Read the standard library and then, in a fixed random order, what is installed, up to a size."""
    paths = sysconfig.get_paths()
    own = sorted(path for path in Path(paths["stdlib"]).rglob("*.py") if "site-packages" not in path.parts)
    installed = sorted(Path(paths["purelib"]).rglob("*.py"))
    random.Random(0).shuffle(installed)
    left = _CORPUS_CHARACTERS
    for path in (*own, *installed):
        text = path.read_text("utf-8", "ignore")
        left -= len(text)
        yield text
        if left < 0:
            return


def train_tokenizer(directory: Path, texts: Iterable[str]) -> None:
    """Train a byte-level BPE and write it with its chat template, as a model's files."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    for content in (*_CONTROL, *_SPOKEN):
        tokenizer.add_tokens([AddedToken(content, special=content in _CONTROL, normalized=False)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    settings = {"eos_token": _CONTROL[2], "pad_token": _CONTROL[0]}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
