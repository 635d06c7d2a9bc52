"""The Python tool with the real sandbox behind it."""

from __future__ import annotations

import pytest
from watched import Watched

from icrl.errors import SandboxError
from icrl.runtime.agent import Agent
from icrl.runtime.sandbox.sandbox import Sandbox
from icrl.runtime.tools.python import PythonTool
from icrl.testing import ByteTokenizer
from icrl.trajectory import StopReason


@pytest.fixture
async def box():
    sandbox = Sandbox(profile="light")
    try:
        await sandbox.__aenter__()
    except SandboxError as error:
        if "locked" not in str(error):  # only a kernel without the layers is an excuse
            raise
        pytest.skip(f"THE SANDBOX IS NOT TESTED: {error}")
    yield sandbox
    await sandbox.aclose()


async def worked(box, programs, **options):
    script = [f"I compute.\n```python\n{program}\n```\n" for program in programs]
    engine = Watched([*script, "<answer> \\boxed{42} </answer>"], tokenizer=ByteTokenizer())
    agent = Agent(engine, dialect="fence", tools=[PythonTool(box, **options)])
    trajectory = (await agent.run("What is 6 times 7?", seed=1)).trajectory
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWER, "42")
    return trajectory.results


async def test_programs_of_a_trajectory(box):
    programs = ["print(6 * 7)\n'a' * 3", "x = 1 /\n", "def f(n):\n    return 1 / n\nf(0)", "while True: pass"]
    results = await worked(box, programs, timeout_s=0.3)
    assert results[0].text == "42\n'aaa'"
    assert "SyntaxError" in results[1].text
    assert "ZeroDivisionError: division by zero" in results[2].text
    assert 'File "<snippet>", line 2, in f' in results[2].text
    assert results[2].text.count("File ") == 2
    assert [result.error for result in results] == [None, None, None, "ToolTimeout"]


async def test_variables_last_until_a_program_is_killed(box):
    programs = ["x = 6", "x * 7", "print('so far', flush=True)\nwhile True: pass", "x"]
    results = await worked(box, programs, timeout_s=0.5, stateful=True)
    assert "printed nothing" in results[0].text
    assert results[1].text == "42"
    assert "so far" in results[2].text
    assert results[2].text.count("The variables of this session are gone.") == 1
    assert "NameError" in results[3].text
