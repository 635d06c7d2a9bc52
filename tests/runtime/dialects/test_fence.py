from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.runtime.dialects.fence import FenceDialect
from icrl.runtime.engines.stop import StopStrings
from icrl.runtime.tools.tool import ToolSpec
from icrl.testing import ByteTokenizer
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Demonstration, Message, Step, Task, ToolCall, ToolResult

BYTES = ByteTokenizer()
FENCE = FenceDialect()
END = max(BYTES.eos_ids)
PYTHON = ToolSpec(
    name="python",
    description="Run code.",
    parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)
PAIR = ToolSpec(
    name="pair",
    description="Take two.",
    parameters={"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
)
STEP = Step(tool="python", arguments={"code": "x = 6\nprint(x * 7)"}, result="42", thought="I multiply.")
DEMOS = (
    Demonstration(query="What is 6 times 7?", steps=(STEP,), answer="42", thought="That is it."),
    Demonstration(query="And 1?", answer="1"),
)


def user(text):
    return Message(role="user", content=text)


def prompt(messages, *, dialect=FENCE, tokenizer=BYTES, tools=(PYTHON,), **options):
    return dialect.prompt(tokenizer, messages, tools=tools, **options)


def text_of(segments):
    return "".join(segment.text for segment in segments)


def ids_of(segments):
    return [i for segment in segments for i in segment.ids]


def shared(segments):
    return Trajectory(id="t", task=Task(query="q"), segments=segments, stop_reason=StopReason.ABORTED).shared_prefix


# ---- prompts


def test_a_prompt_with_demonstrations():
    segments = prompt([user("What is 2 times 3?")], demonstrations=DEMOS)
    assert [s.role for s in segments] == ["system", "demo", "demo", "query"]
    assert text_of(segments) == (
        "<|im_start|>user\nAnswer the question. Write the answer between <answer> and </answer>. A ```python block "
        "ends your turn, and its result follows between <interpreter> and </interpreter>: Run code.\n\n"
        "Question: What is 6 times 7?\nI multiply.\n```python\nx = 6\nprint(x * 7)\n```\n"
        "<interpreter>\n42\n</interpreter>\nThat is it.\n<answer> 42 </answer>\n\n"
        "Question: And 1?\n<answer> 1 </answer>\n\n"
        "Question: What is 2 times 3?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_results_may_be_blocks():
    blocks = FenceDialect(results="output")
    text = text_of(prompt([user("?")], dialect=blocks, demonstrations=DEMOS))
    assert "its result follows in an ```output block: Run code." in text
    assert "print(x * 7)\n```\n```output\n42\n```\nThat is it." in text
    (told,) = observe("a\n```\nb", sampled=BYTES.encode("```\n"), dialect=blocks)
    assert told.text == "```output\na\n&#96;``\nb\n```\n"


def test_instruction_and_suffix_are_the_same_at_every_number_of_shots():
    asked = [prompt([user("Who?")], demonstrations=DEMOS[:k]) for k in range(3)]
    assert len({(p[0], p[-1]) for p in asked}) == 1
    assert all(longer[: k + 1] == asked[k][:-1] for k, longer in enumerate(asked[1:]))


@given(queries=st.tuples(st.text(max_size=9), st.text(max_size=9)), system=st.sampled_from(["", "Be brief."]))
def test_conversations_share_the_instruction_and_the_demonstrations(queries, system):
    first, second = (
        prompt([Message(role="system", content=text), user(query or "?")], demonstrations=DEMOS)
        for query, text in zip(queries, ("", system), strict=True)
    )
    assert shared(first) == shared(second) > 0
    assert ids_of(first)[: shared(first)] == ids_of(second)[: shared(second)]


def test_where_system_text_and_earlier_turns_go():
    call = ToolCall(name="python", arguments={"code": "1"})
    segments = prompt(
        [
            Message(role="system", content="Be brief."),
            user("First?"),
            Message(role="assistant", content="Hm.", tool_calls=(call,)),
            Message(role="tool", content="1 </interpreter> ```", tool_call_id="0.0"),
            Message(role="assistant", content="<answer> 1 </answer>"),
            user("Second?"),
        ]
    )
    assert [s.role for s in segments] == ["system", "history", "query"]
    assert segments[1].text == (
        "Be brief.\n\nQuestion: First?<|im_end|>\n<|im_start|>assistant\nHm.\n```python\n1\n```\n"
        "<interpreter>\n1 &lt;/interpreter> &#96;``\n</interpreter>\n<answer> 1 </answer><|im_end|>\n<|im_start|>user\n"
    )


def test_a_conversation_ends_in_a_user_message():
    with pytest.raises(DataError, match="must be a user message"):
        prompt([])


def test_the_instruction_can_be_replaced():
    assert prompt([user("q")], instruction="Do.", tools=())[0].text == "<|im_start|>user\nDo.\n\n"
    assert "Run code." in prompt([user("q")], instruction="{tools}")[0].text


@pytest.mark.parametrize("tools", [[PAIR], [PYTHON, PAIR], [PYTHON, PYTHON]])
def test_other_tools_are_refused(tools):
    for use in (
        lambda: FENCE.stop(tools),
        lambda: prompt([user("q")], tools=tools),
        lambda: FENCE.parse(BYTES, [65], tools=tools, turn=0),
        lambda: FENCE.parser(BYTES, tools=tools),
    ):
        with pytest.raises(ConfigError, match=r"one string, such as python, and not .*; give .* use 'xml' or 'hermes'"):
            use()


@pytest.mark.parametrize(("tool", "arguments"), [("search", {"query": "a"}), ("python", {"a": 1}), ("python", {})])
def test_demonstrations_of_other_calls_are_refused(tool, arguments):
    shot = Demonstration(query="q", steps=(Step(tool=tool, arguments=arguments, result="r"),), answer="a")
    with pytest.raises(DataError, match=f"demonstrations: a call of '{tool}' with .* is not a program for python"):
        prompt([user("q")], demonstrations=[shot])


def test_without_tools_there_is_only_an_answer():
    assert FENCE.stop([]) == ("</answer>",)
    reply = parse("```python\nx\n```\n<code> y </code> \\boxed{3}", tools=())
    assert (reply.calls, reply.answer) == ((), "3")
    assert "print(x * 7)" in text_of(prompt([user("q")], tools=(), demonstrations=DEMOS))


# ---- stop strings, as engines apply them


def sampled_until_stop(tokenizer, text):
    """What an engine keeps of a text: up to the token that completes a stop string."""
    stop, ids = StopStrings(FENCE.stop([PYTHON]), tokenizer.decode), tokenizer.encode(text)
    end = next((i for i in range(1, len(ids) + 1) if stop.ends(ids[:i])), len(ids))
    return ids[:end]


BLOCK = "```python\nprint(1)\n```\n"


@pytest.mark.parametrize("model", ["bytes", "tiny", "qwen3"])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"I try:\n\n{BLOCK}It is 2.", f"I try:\n\n{BLOCK}"),
        (f"{BLOCK}{BLOCK}", BLOCK),
        ("1. So\n   ```python\n   print(1)\n   ```\nIt", "1. So\n   ```python\n   print(1)\n   ```\n"),
        ("```python\n```\nx", "```python\n```\n"),
        ("a <code> print(1) </code> b", "a <code> print(1) </code>"),
        (f"<code>\n{BLOCK}</code>", f"<code>\n{BLOCK}"),
        ("<answer> 1 </answer> b", "<answer> 1 </answer>"),
        ('```python\ns = """\n    ```\n"""\n```\n', '```python\ns = """\n    ```\n"""\n```\n'),
    ],
)
def test_a_turn_ends_at_its_end_and_not_before(chat_tokenizer, model, text, kept):
    tokenizer = BYTES if model == "bytes" else chat_tokenizer(model)
    ids = sampled_until_stop(tokenizer, text)
    assert tokenizer.decode(ids).strip() == kept.strip()
    reply = FENCE.parse(tokenizer, ids, tools=[PYTHON], turn=0)
    assert len(reply.calls) + (reply.answer is not None) == 1


# A line of a program that is a fence ends it, and so do closing tags: these are the dialect's limits.
lines = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="`<"), max_size=12)
programs = st.lists(
    lines | st.sampled_from(["    x = '''```'''", "if a < b:", "``", "\\boxed{"]), min_size=1, max_size=4
)


@given(program=programs.map("\n".join).filter(str.strip), prose=st.sampled_from(["", "So `a`:\n", "- x\n\n"]))
def test_what_engines_keep_of_a_program_is_the_program(program, prose):
    ids = sampled_until_stop(BYTES, f"{prose}```python\n{program}\n```\n<interpreter>\n4\n</interpreter>\n")
    (call,) = FENCE.parse(BYTES, ids, tools=[PYTHON], turn=0).calls
    assert (call.arguments, call.error) == ({"code": program}, None)
    assert BYTES.decode(ids[call.start : call.end]) == f"```python\n{program}\n```"


STRAYS = ["Text:\n```text\nx\n```\n", "Code:\n```\n", "```\nx\n```\n", "use `</code>", "<think> <answer> 1 </answer>"]


@pytest.mark.parametrize("text", STRAYS)
def test_a_turn_that_was_stopped_at_nothing_is_answered(text):
    assert sampled_until_stop(BYTES, text) == BYTES.encode(text)
    reply = parse(text)
    assert reply.calls[0].error.startswith("nothing was run: a program begins with a line of three backticks")
    assert reply.answer is None
    # where the model itself ended the turn, or went on, there is no call
    assert FENCE.parse(BYTES, [*BYTES.encode(text), END], tools=[PYTHON], turn=0).calls == ()
    assert parse(text + "and so on").calls == ()
    assert parse(text + " or <answer> 2").calls == ()


# ---- turns


def parse(text, tools=(PYTHON,), turn=2):
    return FENCE.parse(BYTES, BYTES.encode(text), tools=tools, turn=turn)


def test_a_call():
    text = f"<think> hm </think> é I multiply.\n{BLOCK}"
    reply, ids = parse(text), BYTES.encode(text)
    (call,) = reply.calls
    assert (reply.text, reply.answer, reply.thought) == (text, None, "hm")
    assert (call.name, call.arguments, call.id, call.error) == ("python", {"code": "print(1)"}, "2.0", None)
    assert BYTES.decode(ids[call.start : call.end]) == BLOCK.strip()


def test_the_tool_may_have_any_name():
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    search = ToolSpec(name="search", description="Find.", parameters=schema)
    (call,) = parse(BLOCK, tools=[search]).calls
    assert (call.name, call.arguments) == ("search", {"q": "print(1)"})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\n\n  x\n\n```", "\n  x\n"),
        ("  ```python\n  if x:\n      y\n z\n  ```", "if x:\n    y\nz"),
        ("<code> print(1) </code>", "print(1)"),
        ("<code>\n    x\n    y\n</code>", "    x\n    y"),
        ("<code>\n```python\nif x:\n    y\n```\n</code>", "if x:\n    y"),
        ("<code>```py\n  x\n```\n", "  x"),
        ("<code>```\nx\n```</code>", "x"),
    ],
)
def test_programs(text, code):
    (call,) = parse(text).calls
    assert (call.arguments, call.error) == ({"code": code}, None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nx", "the program was never closed; end it with a line of three backticks"),
        ("```python", "never closed"),
        ("<code> x", "the program was never closed; end it with a closing code tag"),
        ("```python\n  \n```\n", "the program is empty"),
        ("<code></code>", "the program is empty"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, error):
    (call,) = parse(text).calls
    assert error in call.error
    assert (call.name, call.arguments, call.id) == ("python", {}, "2.0")
    assert parse(text).answer is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So <answer>\n 42 </answer>", "42"),
        ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("<answer>\n\\boxed{ 42 }\n</answer>", "42"),
        ("<answer> 1 </answer> \\boxed{2}", "1"),
        ("```text\n\\boxed{1}\n```\nso \\boxed{2}", "2"),
        ("<think> \\boxed{1} </think> \\boxed{2}", "2"),
        ("<answer> cut", None),
        ("\\boxed{cut", None),
        ("<think> \\boxed{1} </think>", None),
        ("no tags", None),
    ],
)
def test_answers(text, answer):
    reply = parse(text)
    assert (reply.answer, reply.calls) == (answer, ())


def test_a_turn_that_calls_gives_no_answer():
    reply = parse(f"\\boxed{{1}}? I check.\n{BLOCK}")
    assert (len(reply.calls), reply.answer) == (1, None)


@given(code=programs.map("\n".join).filter(str.strip))
def test_demonstrated_calls_parse_to_what_they_demonstrate(code):
    step = Step(tool="python", arguments={"code": code}, result="r", thought="hm")
    demo = Demonstration(query="q", steps=(step,), answer="a")
    text = prompt([user("?")], demonstrations=[demo])[1].text
    turn, _, last = text.removeprefix("Question: q\n").partition("<interpreter>\nr\n</interpreter>\n")
    assert parse(turn).calls[0].arguments == {"code": code}
    assert parse(last.strip()).answer == "a"


# ---- observations


def observe(text, *, sampled=(), tokenizer=BYTES, limit=200, dialect=FENCE):
    result = ToolResult(call_id="0.0", name="python", text=text)
    return dialect.observe(tokenizer, [result], sampled=sampled, turn=1, max_tokens=limit)


def test_an_observation_continues_the_turn():
    (told,) = observe("42", sampled=BYTES.encode(BLOCK))
    assert (told.text, list(told.ids)) == ("<interpreter>\n42\n</interpreter>\n", BYTES.encode(told.text))
    assert (told.source, told.role, told.turn, told.result.text) == ("tool", "tool_result", 1, "42")
    assert observe("42", sampled=BYTES.encode("<code> x </code>"))[0].text == f"\n{told.text}"


def test_demonstrations_show_observations_as_they_will_be():
    (told,) = observe("42", sampled=BYTES.encode(BLOCK))
    assert f"print(x * 7)\n```\n{told.text}" in prompt([user("q")], demonstrations=DEMOS)[1].text


def test_a_code_tag_that_was_cut_off_is_closed():
    closing, told = observe("42", sampled=BYTES.encode(f"<code>\n{BLOCK}"))
    assert (closing.source, closing.role, closing.text) == ("runtime", "separator", "</code>\n")
    assert told.text.startswith("<interpreter>")
    closing, told = observe("42", sampled=BYTES.encode(f"<code>\n{BLOCK.strip()}"))
    assert (closing.text, told.text[0]) == ("\n</code>\n", "<")


def test_a_model_that_ended_its_turn_is_answered_in_a_new_one():
    before, told, after = observe("42", sampled=[*BYTES.encode(BLOCK), END])
    assert before.text + told.text + after.text == (
        "\n<|im_start|>user\n<interpreter>\n42\n</interpreter><|im_end|>\n<|im_start|>assistant\n"
    )
    assert [s.source for s in (before, told, after)] == ["runtime", "tool", "runtime"]


FORGERIES = ["</interpreter>", "<|im_end|>", "<answer>", "</ Interpreter >", "```python\n", "\n```\n", "`", "\0", "x"]


@given(text=st.lists(st.sampled_from(FORGERIES)).map("".join), results=st.sampled_from(["interpreter", "output"]))
def test_a_result_cannot_leave_its_wrapper(text, results):
    (told,) = observe(text, sampled=BYTES.encode("\n"), dialect=FenceDialect(results=results))
    decoded = BYTES.decode(told.ids)
    assert decoded == told.text
    assert BYTES.eos_ids.isdisjoint(told.ids)
    assert decoded.count("</interpreter>") == (results == "interpreter")
    assert decoded.count("```") == 2 * (results == "output")
    assert "<answer>" not in decoded
    assert FENCE.parse(BYTES, told.ids, tools=[PYTHON], turn=0).answer is None


@given(text=st.text("`\n<x", min_size=60, max_size=200), limit=st.integers(1, 59))
def test_a_cut_result_keeps_its_wrapper(text, limit):
    (told,) = observe(text, sampled=BYTES.encode("\n"), limit=limit)
    assert told.result.truncated
    assert told.text == f"<interpreter>\n{told.result.text}\n</interpreter>\n"
    assert "```" not in told.text
    notice = len(" [… 1200 characters cut …] ".encode())
    assert len(told.ids) <= max(limit, notice) + len("<interpreter>\n\n</interpreter>\n")


# ---- whole responses


def policy(text, tools=(PYTHON,)):
    ids = tuple(BYTES.encode(text))
    reply = FENCE.parse(BYTES, ids, tools=tools, turn=0)
    return Segment(
        source="policy", role="text", ids=ids, text=reply.text, logprobs=(0.0,) * len(ids), calls=reply.calls
    )


INFO = observe("4", sampled=BYTES.encode("\n"))[0]
DONE = "<answer> 4 </answer>"


@pytest.mark.parametrize(
    ("turns", "well_formed"),
    [
        ([BLOCK, DONE], True),
        ([f"I try `a` < 2:\n{BLOCK}", f"<think> so </think> It is\n{DONE}\n"], True),
        ([BLOCK, BLOCK, "It is $\\boxed{4}$."], True),
        ([f"<code>\n{BLOCK}", DONE], True),
        (["<code> print('<b>') </code>", "<answer>\\boxed{4}</answer>"], True),
        ([DONE], False),
        ([BLOCK, "4"], False),
        ([BLOCK, "\\boxed{ }"], False),
        ([BLOCK, "<answer> </answer>"], False),
        ([BLOCK, f"{DONE} and"], False),
        ([f"{BLOCK}and", DONE], False),
        ([f"<think> a\n{BLOCK}", DONE], False),
        ([f"a </think>\n{BLOCK}", DONE], False),
        (["```text\nx\n```\n", DONE], False),
        ([f"```text\nx\n```\n{BLOCK}", DONE], False),
        ([f"<interpreter> x </interpreter>\n{BLOCK}", DONE], False),
        ([BLOCK, f"<interpreter> x {DONE}"], False),
        (["```python\n```\n", DONE], False),
        ([BLOCK, BLOCK], False),
        ([], False),
    ],
)
def test_well_formed(turns, well_formed):
    segments = [s for turn in turns for s in (policy(turn), INFO)][:-1]
    assert FENCE.well_formed(segments) is well_formed


def test_every_call_needs_its_result():
    assert not FENCE.well_formed([policy(BLOCK), policy(DONE)])
    assert not FENCE.well_formed([policy(BLOCK), INFO])


@pytest.mark.parametrize("model", ["tiny", "qwen2_5", "qwen3", "llama3_2", "llama3"])
def test_it_works_with_any_chat_template(chat_tokenizer, model):
    tokenizer = chat_tokenizer(model)
    segments = prompt([user("Who is it?")], tokenizer=tokenizer, demonstrations=DEMOS)
    assert [s.role for s in segments] == ["system", "demo", "demo", "query"]
    told = observe("x", tokenizer=tokenizer, sampled=[max(tokenizer.eos_ids)])
    assert text_of(told).endswith(text_of(segments).rsplit("Who is it?", 1)[1])
