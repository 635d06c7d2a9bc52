"""Probe a base: does it imitate the tool format when shown it, and only then? `python -m icrl.tiny.probe DIR`.

A base is fit to learn from when it never writes the format on its own (there would be nothing to teach) and writes it
now and then after demonstrations (there has to be something to reward).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from icrl.tiny import BASE_DIR
from icrl.tiny.checkpoint import load
from icrl.tiny.model import TinyQwen2
from icrl.tiny.sampler import Episode, sample_episodes
from icrl.tiny.world import World, top_documents
from icrl.types import Demonstration, Task

__all__ = ["INSTRUCTION", "ProbeResult", "fit", "main", "probe", "prompt"]

INSTRUCTION = "Answer the question. You can <think> </think> , <search> </search> and <answer> </answer>."
"""Names the tags: without that, few-shot training never carries over to zero shots."""

_FORM = re.compile(
    r"\s*(?:<think>[^<>]*</think>\s*)?"
    r"(?:<search>[^<>]+</search>\s*<information>[^<>]*</information>\s*(?:<think>[^<>]*</think>\s*)?)+"
    r"<answer>[^<>]+</answer>\s*"
)
_ANSWER = re.compile(r"<answer>([^<>]*)</answer>")
_SEARCH = re.compile(r"<search>((?:(?!<search>).)*\S(?:(?!<search>).)*)</search>$", re.DOTALL)
_MOST_SEARCHES = 2
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a base does at one number of shots, as shares of its samples."""

    shots: int
    """Demonstrations in the prompt."""
    temperature: float
    """Sampling temperature."""
    samples: int
    """Number of samples."""
    call: float
    """At least one search was made."""
    form: float
    """The whole response keeps the format."""
    exact: float
    """The answer is right."""


def prompt(task: Task, demonstrations: tuple[Demonstration, ...]) -> str:
    """Write a question with its demonstrations as the chat template does for one user message."""
    shown = "".join(f"{_example(d)}\n\n" for d in demonstrations)
    return f"<|im_start|>user\n{INSTRUCTION}\n\n{shown}Question: {task.query}<|im_end|>\n<|im_start|>assistant\n"


def _example(demonstration: Demonstration) -> str:
    steps = "".join(
        f"<think> {s.thought} </think>\n<search> {s.arguments['query']} </search>{_observation(s.result)}"
        for s in demonstration.steps
    )
    return f"Question: {demonstration.query}\n{steps}<answer> {demonstration.answer} </answer>"


def _observation(text: str) -> str:
    return f"\n<information> {text} </information>\n"


def probe(
    model: TinyQwen2,
    tokenizer: Any,
    world: World,
    *,
    shots: int,
    temperature: float = 1.0,
    questions: int = 100,
    samples: int = 4,
    seed: int = 0,
) -> ProbeResult:
    """Sample responses to held-out questions and see what they look like.

    Args:
        model: The base.
        tokenizer: Its `tokenizers.Tokenizer`.
        world: Where questions, documents and demonstrations come from.
        shots: Demonstrations in the prompt, the same ones for all questions.
        temperature: Sampling temperature.
        questions: How many held-out questions to ask.
        samples: Responses to each.
        seed: Selects questions, demonstrations and draws.
    """
    random = Random(seed)
    tasks = [t for t in random.sample(world.held_out, questions) for _ in range(samples)]
    shown = tuple(random.sample(world.demonstrations, shots))
    search = _Search(world)
    episodes = [
        episode
        for start in range(0, len(tasks), _BATCH)
        for episode in sample_episodes(
            model,
            tokenizer,
            [prompt(t, shown) for t in tasks[start : start + _BATCH]],
            search,
            temperature=temperature,
            seed=seed + start,
            stop="</answer>",
            max_tokens=90,
        )
    ]
    seen = sum((_judge(t, e) for t, e in zip(tasks, episodes, strict=True)), Counter[str]())
    shares = {name: seen[name] / len(tasks) for name in ("call", "form", "exact")}
    return ProbeResult(shots=shots, temperature=temperature, samples=len(tasks), **shares)


class _Search:
    """The search tool of the probe, with a memory for queries it has seen."""

    def __init__(self, world: World) -> None:
        self._documents = world.documents
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        match = _SEARCH.search(text)
        if match is None or text.count("<information>") >= _MOST_SEARCHES:
            return ""
        query = match[1]
        if query not in self._known:
            self._known[query] = " ".join(d.text for d in top_documents(query, self._documents, 2)) or "no result."
        return _observation(self._known[query])


def _judge(task: Task, episode: Episode) -> Counter[str]:
    answer = _ANSWER.search(episode.text)
    return Counter(
        call=episode.observations > 0,
        form=_FORM.fullmatch(episode.text) is not None,
        exact=answer is not None and answer[1].strip().lower() == task.answers[0].lower(),
    )


def fit(zero_shot: ProbeResult, three_shot: ProbeResult) -> bool:
    """Tell whether a base is fit for training by the curriculum; both results are at temperature 1.

    Example:
        >>> zero = ProbeResult(shots=0, temperature=1.0, samples=3200, call=0.0, form=0.0, exact=0.0)
        >>> three = ProbeResult(shots=3, temperature=1.0, samples=400, call=0.3, form=0.1, exact=0.0)
        >>> fit(zero, three), fit(zero, zero)
        (True, False)
    """
    return zero_shot.form <= 0.005 and zero_shot.call <= 0.05 and three_shot.form >= 0.02


def main(directory: Path = BASE_DIR) -> None:
    """Print the probe of a base.

    Args:
        directory: Hugging Face directory of the base; the shipped one if not given.
    """
    from tokenizers import Tokenizer

    model = load(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    world = World()
    results = [probe(model, tokenizer, world, shots=shots, samples=16 if shots == 0 else 4) for shots in range(4)]
    for r in results:
        sys.stdout.write(
            f"{r.shots} shots, {r.samples} samples at T = {r.temperature}: "
            f"call {r.call:.3f}  form {r.form:.3f}  exact {r.exact:.3f}\n"
        )
    sys.stdout.write("fit for training\n" if fit(results[0], results[3]) else "NOT fit for training\n")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
