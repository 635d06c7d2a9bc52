"""Programs in, results out: what a caller of the sandbox sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from runtime.sandbox.confinement import children_of, needs_layers

from icrl.errors import ConfigError, MissingExtraError
from icrl.runtime.sandbox import process
from icrl.runtime.sandbox.profiles import PROFILES
from icrl.runtime.sandbox.program import MAX_CODE_BYTES
from icrl.runtime.sandbox.result import Executor, SandboxResult
from icrl.runtime.sandbox.sandbox import Sandbox

pytestmark = [needs_layers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["restricted", "plain"])
async def box(request) -> AsyncIterator[Sandbox]:
    async with Sandbox(policy=request.param) as opened:
        yield opened


async def test_it_prints_and_echoes_the_last_expression(box):
    result = await box.run("x = 20\nprint('twenty', x)\nx + 1")
    assert (result.status, result.stdout, result.value, result.error) == ("ok", "twenty 20\n", "21", None)
    assert result.cpu_s > 0
    assert result.max_rss_mb > 1
    assert 0 < result.wall_s < 5
    assert not result.truncated


async def test_none_is_not_echoed(box):
    assert (await box.run("None")).value is None
    assert (await box.run("x = 1")).value is None


async def test_an_exception_is_told_with_the_lines_of_the_snippet_only(box):
    result = await box.run("def f(x):\n    return 1 / x\nprint('before')\nf(0)")
    assert result.status == "error"
    assert result.stdout == "before\n"
    assert result.error == (
        "Traceback (most recent call last):\n"
        '  File "<snippet>", line 4, in <module>\n    f(0)\n'
        '  File "<snippet>", line 2, in f\n    return 1 / x\n'
        "ZeroDivisionError: division by zero"
    )


async def test_a_syntax_error_names_the_line(box):
    result = await box.run("x = 1\ny = (")
    assert result.status == "error"
    assert "line 2" in result.error
    assert result.error.splitlines()[-1].startswith("SyntaxError: ")


async def test_input_comes_from_stdin(box):
    result = await box.run("print(input() + '!')\nprint(input())", stdin="one\ntwo ☃\n")
    assert result.stdout == "one!\ntwo ☃\n"
    assert "EOFError" in (await box.run("input()")).error


async def test_a_large_input_arrives_whole(box):
    result = await box.run("text = input()\nlen(text)", stdin="x" * 1_000_000)
    assert result.value == "1000000"


async def test_what_was_printed_before_the_deadline_is_kept(box):
    result = await box.run("print('first')\nprint('no newline', end='')\nwhile True: pass", timeout_s=0.5)
    assert result.status == "timeout"
    assert result.stdout == "first\nno newline"
    assert result.error == "stopped: the program was not done after 0.5 s"


async def test_too_much_output_is_cut_and_stops_the_program(box):
    result = await box.run("for i in range(10 ** 9): print(i)")
    assert result.status == "output_limit"
    assert result.truncated
    assert result.stdout.startswith("0\n1\n2\n")
    assert 199_000 < len(result.stdout) <= 200_000


async def test_too_much_memory_is_told(box):
    result = await box.run("print('growing')\nx = [0] * 10 ** 9", memory_mb=640)
    assert result.status == "memory"
    assert result.stdout == "growing\n"
    assert result.max_rss_mb < 640


async def test_exit_is_an_end_and_a_failure_only_with_a_status(box):
    assert (await box.run("raise SystemExit")).status == "ok"
    failed = await box.run("raise SystemExit('no')")
    assert (failed.status, failed.error.splitlines()[-1]) == ("error", "SystemExit: no")


async def test_a_long_value_is_cut_in_the_middle(box):
    result = await box.run("'a' + 'x' * 100_000 + 'z'")
    assert result.truncated
    assert result.value.startswith("'axx")
    assert result.value.endswith("xxz'")
    assert "characters left out" in result.value
    assert len(result.value) < 21_000


async def test_text_of_every_kind_survives(box):
    result = await box.run("print('☃ \\ud800 \\x00')\n'\\udfff'")
    assert result.stdout == "☃ \\ud800 \x00\n"
    assert result.value == "'\\udfff'"


async def test_science_is_there_and_warm(box):
    code = "import numpy as np, sympy\nx = sympy.Symbol('x')\nprint(np.arange(4).sum(), sympy.solve(x**2 - 4, x))"
    result = await box.run(code)
    assert (result.status, result.stdout) == ("ok", "6 [-2, 2]\n")
    assert result.max_rss_mb > 50
    assert (await box.run("import math\nmath.pi")).max_rss_mb < 50


@pytest.mark.parametrize("profile", ["light", "sci"])
async def test_programs_that_warm_a_zygote_run(box, profile):
    for snippet in PROFILES[profile].snippets:
        result = await box.run(snippet, timeout_s=20)
        assert result.status == "ok", result.error


async def test_source_that_is_too_long_is_refused(box):
    longest = "#" * MAX_CODE_BYTES
    assert (await box.run(longest)).status == "ok"
    refused = await box.run(longest + "#")
    assert refused.status == "denied"
    assert "65536 are allowed" in refused.error
    assert (await box.run("'\ud800'")).status == "error"


async def test_random_numbers_differ_from_run_to_run(box):
    standard = "import random\nrandom.random()"
    arrays = "import numpy as np\nnp.random.rand()"
    symbols = "from sympy.core.random import rng\nrng.random()"
    for code in [standard, arrays, *([symbols] if "plain" in repr(box) else [])]:
        values = {(await box.run(code)).value for _ in range(4)}
        assert len(values) == 4, code


async def test_sets_print_in_the_same_order_in_every_run(box):
    code = "print({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert len({(await box.run(code)).stdout for _ in range(3)}) == 1


LEAKS = {
    "decimal": ("from decimal import getcontext\ngetcontext().prec = 5", "from decimal import Decimal\nDecimal(1) / 3"),
    "random": ("import random\nrandom.seed(1)", "import random\nr = random.Random(1).random()\nrandom.random() != r"),
    "numpy errors": ("import numpy as np\nnp.seterr(all='raise')", "import numpy as np\nnp.float64(1e308) * 10"),
    "numpy printing": (
        "import numpy as np\nnp.set_printoptions(precision=1)",
        "import numpy as np\nprint(np.array([1/3]))",
    ),
    "variables": ("leaked = 1", "try:\n    leaked\nexcept NameError:\n    print('clean')"),
    "sympy assumptions": (
        "import sympy\nx = sympy.Symbol('x', positive=True)",
        "import sympy\nsympy.sqrt(sympy.Symbol('x')**2)",
    ),
}
POISON = ("import builtins\nbuiltins.sum = lambda *a: 42", "sum([1, 2])")


@pytest.mark.parametrize("name", LEAKS)
async def test_nothing_flows_from_one_run_to_the_next(box, name):
    spoil, look = LEAKS[name]
    before = await box.run(look)
    assert (await box.run(spoil)).status in ("ok", "denied", "error")
    after = await box.run(look)
    assert (after.status, after.stdout, after.value) == (before.status, before.stdout, before.value)
    assert after.status == "ok"


async def test_a_poisoned_builtin_dies_with_its_program(box):
    await box.run(POISON[0])
    assert (await box.run(POISON[1])).value == "3"


async def test_programs_run_side_by_side(box):
    results = await asyncio.gather(*(box.run(f"print({n})\n{n} ** 2") for n in range(30)))
    assert [r.value for r in results] == [str(n * n) for n in range(30)]
    assert [r.stdout for r in results] == [f"{n}\n" for n in range(30)]


async def test_no_child_is_left_after_a_run(box):
    await box.run("1")
    assert [children_of(pid) for pid in box.zygotes.values()] == [[], []]


async def test_bounds_out_of_range_are_refused(box):
    for wrong, told in [({"timeout_s": 0.0}, "timeout_s: must be > 0"), ({"memory_mb": 0}, "memory_mb: must be >= 1")]:
        with pytest.raises(ConfigError, match=told):
            await box.run("1", **wrong)
    with pytest.raises(ConfigError, match=r"memory_mb: must be >= .* imported in advance, not 20"):
        await box.run("1", memory_mb=20)


async def test_it_is_an_executor(box):
    executor: Executor = box
    assert isinstance(await executor.run("1"), SandboxResult)


async def test_a_missing_package_is_named_with_the_fix(monkeypatch):
    lacking = PROFILES["light"].__class__(packages=("no_such_package",), modules=(), snippets=())
    monkeypatch.setitem(PROFILES, "sci", lacking)
    monkeypatch.setattr(process, "EXTRA_PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"pip install 'icrl\[sandbox\]'"):
        async with Sandbox("sci", "plain"):
            pass
    async with Sandbox("auto", "plain") as box:
        assert (await box.run("import math as numpy\nnumpy.pi")).status == "ok"
        assert list(box.zygotes) == ["light"]
