"""The second embedded world: expressions in symbols, to be worked out with the Python tool.

A product of numbers with two digits is out of reach for a model of a million parameters, so the tool is
needed; every result is a whole number of three to five digits, so that it cannot be guessed either.
`python -m icrl.tiny.arithmetic` rewrites the files of the package, which equal what this module computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from icrl.tiny.world import write_demonstrations, write_tasks
from icrl.types import Demonstration, Step, Task

__all__ = ["QUESTIONS", "SHAPES", "Arithmetic", "Problem", "write_arithmetic"]

QUESTIONS = ("What is {x}?", "Compute {x}.", "Tell me {x}.", "I need {x}.")
"""How questions are worded; `x` is the expression."""

SHAPES: Mapping[str, Callable[[int, int, int], int]] = {
    "{a} * {b}": lambda a, b, _: a * b,
    "{a} * {b} + {c}": lambda a, b, c: a * b + c,
    "{a} * {b} - {c}": lambda a, b, c: a * b - c,
    "{a} + {b} * {c}": lambda a, b, c: a + b * c,
}
"""What expressions look like, and their value; `a`, `b` and `c` are numbers."""

_TRAIN = 1200
_HELD_OUT = 400
_DEMONSTRATED = 8
_NUMBERS = range(11, 100)
_RESULTS = range(100, 100_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An expression and what it comes to."""

    expression: str
    """Numbers and operators with spaces between them."""
    value: int
    """Its value."""
    numbers: tuple[int, ...]
    """The numbers it holds, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Problems with their tasks, all of it a function of the seed.

    Example:
        >>> world = Arithmetic()
        >>> len(world.train), len(world.held_out), len(world.demonstrations)
        (1200, 400, 8)
        >>> world.demonstrations[0].steps[0].arguments["code"]
        '19 * 98 - 11'
    """

    seed: int = 0
    """Which problems; the shipped files are those of seed 0."""

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """[1608] no two of the same numbers: the held-out ones, those of demonstrations, the rest."""
        found: dict[tuple[int, ...], Problem] = {}
        for problem in _problems(Random(f"arithmetic {self.seed}")):
            found.setdefault(problem.numbers, problem)
            if len(found) == _HELD_OUT + _DEMONSTRATED + _TRAIN:
                break
        return tuple(found.values())

    @property
    def held_out(self) -> tuple[Task, ...]:
        """[400] problems whose numbers stand together in no training problem and no demonstration."""
        return tuple(map(self._task, self.problems[:_HELD_OUT]))

    @property
    def train(self) -> tuple[Task, ...]:
        """[1200] problems to learn from."""
        return tuple(map(self._task, self.problems[_HELD_OUT + _DEMONSTRATED :]))

    @property
    def demonstrations(self) -> tuple[Demonstration, ...]:
        """[8] worked examples, one call each; every wording twice."""
        shown = self.problems[_HELD_OUT : _HELD_OUT + _DEMONSTRATED]
        wordings = (*QUESTIONS, *reversed(QUESTIONS))
        return tuple(_demonstrate(problem, wording) for problem, wording in zip(shown, wordings, strict=True))

    def _task(self, problem: Problem) -> Task:
        wording = Random(f"question {self.seed} {problem.expression}").choice(QUESTIONS)
        return Task(
            id=problem.expression.replace(" ", ""),
            query=wording.format(x=problem.expression),
            answers=(str(problem.value),),
            metadata={"world": "code", "expression": problem.expression},
        )


def _problems(random: Random) -> Iterator[Problem]:
    """Yield problems without end, shape after shape, whose value is in bounds.

    Their numbers differ: what goes on after a number that stands there twice cannot be told from the number alone.
    """
    while True:
        for shape, evaluate in SHAPES.items():
            a, b, c = (random.choice(_NUMBERS) for _ in range(3))
            value = evaluate(a, b, c)
            numbers = (a, b, c) if "{c}" in shape else (a, b)
            if value in _RESULTS and len(set(numbers)) == len(numbers):
                expression = shape.format(a=a, b=b, c=c)
                yield Problem(expression=expression, value=value, numbers=tuple(sorted(numbers)))


def _demonstrate(problem: Problem, wording: str) -> Demonstration:
    step = Step(
        tool="python",
        arguments={"code": problem.expression},
        result=str(problem.value),
        thought=f"I need {problem.expression}.",
    )
    return Demonstration(query=wording.format(x=problem.expression), steps=(step,), answer=str(problem.value))


def write_arithmetic(world: Arithmetic, directory: Path) -> None:
    """Write `code_train.jsonl`, `code_heldout.jsonl` and `code_demonstrations.yaml` into an existing directory."""
    write_tasks(directory / "code_train.jsonl", world.train)
    write_tasks(directory / "code_heldout.jsonl", world.held_out)
    write_demonstrations(directory / "code_demonstrations.yaml", world.demonstrations)


if __name__ == "__main__":
    write_arithmetic(Arithmetic(), Path(__file__).parent)
