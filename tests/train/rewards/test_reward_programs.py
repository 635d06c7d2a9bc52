"""Programs as answers: tests run one by one, proofs cannot be forged by ending early, and time is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import TASK, asked, reply, tagged, trajectory

from icrl.errors import ConfigError, DataError, RewardError, SandboxError
from icrl.runtime.sandbox.result import SandboxResult
from icrl.train.rewards import ProgramMatcher, QuestionReward, checked, programs
from icrl.train.rewards.program_tests import tests_of as read_tests
from icrl.train.rewards.program_tests import unfenced

SQUARE = "def f(x):\n    return x * x\n"


class Interpreter:
    """Runs trusted programs of these tests in our own process, as the sandbox would."""

    def __init__(self, **result):
        self.runs = []
        self.result = {"wall_s": 0.0, **result}
        self.closed = False

    async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
        self.runs.append((timeout_s, memory_mb))
        if "while True" in code:
            return SandboxResult(status="timeout", wall_s=timeout_s)
        printed, lines = io.StringIO(), iter(stdin.splitlines())
        names = {"input": lambda: next(lines)}
        body, _, last = code.rstrip().rpartition("\n")
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(body, "<snippet>", "exec"), names)
                value = repr(eval(compile(last, "<snippet>", "eval"), names))
        except SystemExit:
            return SandboxResult(status="ok", stdout=printed.getvalue(), **self.result)
        except Exception as error:
            return SandboxResult(status="error", stdout=printed.getvalue(), error=repr(error), **self.result)
        value = None if value == "None" else value
        return SandboxResult(status="ok", stdout=printed.getvalue(), value=value, **self.result)

    async def aclose(self):
        self.closed = True


async def judged(code, *tests, **fields):
    return (await ProgramMatcher(executor=Interpreter(), **fields)(code, asked(tests=list(tests)))).components


async def test_input_and_output():
    tests = [{"stdin": "4\n", "stdout": "16\n"}, {"stdin": "5", "stdout": "25"}]
    code = "x = int(input())\nprint(x * x, end=' \\n\\n')"
    assert await judged(code, *tests) == {"em": 1.0, "passed": 1.0}
    assert await judged("print(input())\nprint(16)", {"stdin": "4", "stdout": "16"}) == {"em": 0.0, "passed": 0.0}


async def test_snippets_run_in_the_namespace_of_the_program():
    assert await judged(SQUARE, "assert f(2) == 4", {"assert": "assert f(3) == 9"}) == {"em": 1.0, "passed": 1.0}
    assert await judged(SQUARE, "assert f(2) == 4", "assert f(3) == 6", "g") == {"em": 0.0, "passed": 1 / 3}


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "def f(x):\n    raise SystemExit(0)",
        "if 0: \\",
        "x = '''",
        "x = (",
        "class f:\n    pass\nif False:",
        "f = lambda x: 5 #",
        "",
        None,
    ],
)
async def test_a_program_that_ends_early_or_swallows_the_snippet_proves_nothing(code):
    assert (await judged(code, "assert f(2) == 4"))["em"] == 0.0


async def test_printing_a_proof_of_another_run_proves_nothing():
    code = "def f(x): return x * x\nprint('0' * 32)\nraise SystemExit"
    assert (await judged(code, "assert f(2) == 4"))["em"] == 0.0


async def test_time_outs_are_counted_and_the_budget_bounds_them():
    matcher = ProgramMatcher(executor=(executor := Interpreter()), timeout_s=4.0, budget_s=10.0, memory_mb=64)
    score = await matcher("while True: pass", asked(tests=["assert 1"] * 6))
    assert score.components == {"em": 0.0, "passed": 0.0, "timeouts": 6.0}
    assert executor.runs == [(4.0, 64), (4.0, 64), (2.0, 64)]


async def test_nothing_runs_without_a_program():
    matcher = ProgramMatcher(executor=(executor := Interpreter()))
    assert (await matcher(None, asked(tests=["assert 1"]))).components == {"em": 0.0, "passed": 0.0}
    assert executor.runs == []


async def test_output_that_was_cut_is_never_right():
    matcher = ProgramMatcher(executor=Interpreter(truncated=True))
    assert (await matcher("print(1)\n0", asked(tests=[{"stdout": "1"}]))).total == 0.0


@pytest.mark.parametrize("status", ["error", "memory", "output_limit", "denied", "crashed"])
async def test_only_runs_that_end_well_count(status):
    class Broken(Interpreter):
        async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
            return SandboxResult(status=status, stdout="1", value=code.rstrip().rpartition("\n")[2])

    for test in ({"stdout": "1"}, "assert 1"):
        assert (await ProgramMatcher(executor=Broken())("x", asked(tests=[test]))).total == 0.0


async def test_a_broken_sandbox_is_an_error_and_never_a_wrong_answer():
    class Broken(Interpreter):
        async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
            raise SandboxError("no seccomp")

    reward = QuestionReward(well_formed=tagged, match=ProgramMatcher(executor=Broken()))
    with pytest.raises(RewardError, match="trajectory t0: SandboxError: no seccomp"):
        await checked(reward)(trajectory("x"), asked(tests=["assert 1"]))


async def test_an_executor_that_never_answers_is_an_error(monkeypatch):
    class Silent(Interpreter):
        async def run(self, code, *, timeout_s=5.0, memory_mb=1024, stdin=""):
            await asyncio.Event().wait()

    monkeypatch.setattr(programs, "ANSWER_TIMEOUT_S", 0.0)
    with pytest.raises(RewardError, match="did not answer"):
        await ProgramMatcher(executor=Silent(), timeout_s=0.01)("x", asked(tests=["assert 1"]))


async def test_the_reward_pays_for_programs_and_closes_the_sandbox():
    reward = QuestionReward(well_formed=tagged, match=ProgramMatcher(executor=(executor := Interpreter())))
    answer = f"```python\n{SQUARE}```"
    score = await checked(reward)(trajectory(answer, reply("<answer>")), asked(tests=["assert f(5) == 25"]))
    assert (score.total, score.components) == (1.0, {"em": 1.0, "passed": 1.0, "format": 1.0})
    await reward.aclose()
    assert executor.closed


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("print(1)", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("First:\n```py\na\n```\nbetter:\n```python\nb\n\nc\n```\nDone.", "b\n\nc"),
        ("```python\nprint(1)", "```python\nprint(1)"),
        ("```\na\n```\n```\nb", "a"),
        ("```\ns = '''\n```x\n'''\n```", "s = '''\n```x\n'''"),
        ("", ""),
    ],
)
def test_the_last_closed_fence_is_the_program(answer, code):
    assert unfenced(answer) == code


@given(st.lists(st.sampled_from(["```", "```python", "x", " ```", ""])).map("\n".join))
def test_any_arrangement_of_fences_gives_text_of_the_answer(answer):
    assert unfenced(answer) in answer


def test_many_open_fences_are_read_in_linear_time():
    assert unfenced("```x\n" * 200_000).startswith("```x")


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        (None, "needs a list of tests, not None"),
        ([], "needs a list of tests"),
        ("assert 1", "needs a list of tests"),
        ([3], r"tests\[0\]: needs an object with 'stdout' or 'assert', not 3"),
        (["assert 1", {"stdin": "1"}], r"tests\[1\]: needs either 'stdout' or 'assert'"),
        ([{"stdout": "1", "assert": "x"}], "needs either"),
        ([{"stdot": "1"}], r"unknown key 'stdot'\. Did you mean 'stdout'\?"),
        ([{"stdout": 1}], "stdout: needs text, not 1"),
        (["  "], "assert: is empty, so anything would pass"),
    ],
)
def test_malformed_tests_are_refused_with_their_place(tests, problem):
    with pytest.raises(DataError, match=rf"task 't7': metadata\.tests.*{problem}|metadata\.{problem}"):
        read_tests(asked(tests=tests) if tests is not None else asked())


@pytest.mark.parametrize("field", ["timeout_s", "budget_s", "memory_mb"])
def test_bounds_are_checked(field):
    with pytest.raises(ConfigError, match=f"{field}: must be > 0"):
        ProgramMatcher(executor=Interpreter(), **{field: 0})


async def test_a_task_without_tests_cannot_be_scored():
    with pytest.raises(DataError, match=r"metadata\.tests"):
        await ProgramMatcher(executor=Interpreter())("x", TASK)
