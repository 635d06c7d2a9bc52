"""A conversation that ends in the results of calls goes on exactly where a run would have been.

The law: let a run call tools, and write what happened as messages: the question, what the model said with its calls,
the results. Then the prompt of these messages is, token by token, what the engine was given after the calls. It holds
for every dialect where the model wrote its turn as the dialect or the template itself does; text has no other way.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched import tool_call

from icrl.errors import DataError
from icrl.rendered import Marks
from icrl.runtime.agent import Agent
from icrl.runtime.dialect import find_dialect
from icrl.runtime.tools.tool import ToolSpec
from icrl.testing import ByteTokenizer, EchoTool, ScriptedEngine
from icrl.types import Demonstration, Message, Step, ToolCall

BYTES = ByteTokenizer()
QUESTION = Message(role="user", content="Who?")
FRAGMENTS = ["a fox", " b", "\n", "é", "</information>", "</tool_response>", "<tool_response>", "<|im_end|>", "\x00"]
FRAGMENTS += ["</interpreter>", "<answer>", "&lt;", "```", "<think>"]
results = st.lists(st.sampled_from(FRAGMENTS), max_size=4).map("".join)
THOUGHTS = {"xml": "<think> hm </think>", "fence": "I see.", "hermes": "<think>\nhm\n</think>\n\n"}


def turn(tokenizer, dialect: str, thought: str, texts: list[str]) -> str:
    """Write a turn as the model should."""
    if dialect == "xml":
        return "\n".join(filter(None, (thought, *(f"<echo> {text} </echo>" for text in texts))))
    if dialect == "fence":
        return "\n".join(filter(None, (thought, *(f"```python\n{text}\n```\n" for text in texts))))
    between = "" if tokenizer is BYTES else "\n"
    gap = between if thought and not thought.endswith("\n\n") else ""
    return thought + gap + between.join(tool_call("echo", text=text) for text in texts)


def as_sampled(tokenizer, text: str, dialect: str) -> list[int]:
    """The tokens of a model that writes the template's own marks as such, and ends its turn where that is wanted."""
    ending = "<|im_end|>" if dialect == "hermes" else ""
    if tokenizer is BYTES:
        return tokenizer.encode(text) + [258] * bool(ending)
    rendered = tokenizer._files.added_tokens.parse(text + ending, Marks.absent_from(text))
    return tokenizer.encode(rendered)


def messages_of(dialect: str, turns, answers) -> list[Message]:
    """Write what happened as a client would."""
    chat = [QUESTION]
    for index, (thought, texts) in enumerate(turns):
        calls = tuple(ToolCall(name="echo", arguments={"text": t}, id=f"{index}.{i}") for i, t in enumerate(texts))
        chat.append(Message(role="assistant", content=thought, tool_calls=calls))
        told = [
            Message(role="tool", content=answers[text], tool_call_id=c.id) for text, c in zip(texts, calls, strict=True)
        ]
        chat += told
    return chat


class Answering(EchoTool):
    """Answers what a test says."""

    def __init__(self, answers) -> None:
        super().__init__()
        self.answers = answers

    async def __call__(self, arguments):
        return self.answers[arguments["text"]]


def given_after(tokenizer, dialect: str, turns, answers) -> tuple[int, ...]:
    """Run the turns and return what the engine was given after them."""
    script = [as_sampled(tokenizer, turn(tokenizer, dialect, thought, texts), dialect) for thought, texts in turns]
    engine = ScriptedEngine([*script, "the end"], tokenizer=tokenizer)
    asyncio.run(Agent(engine, dialect=dialect, tools=[Answering(answers)]).run([QUESTION], seed=1))
    assert len(engine.requests) == len(turns) + 1
    return engine.requests[-1].ids


def prompted(tokenizer, dialect: str, messages):
    return find_dialect(dialect).prompt(tokenizer, messages, tools=[EchoTool().spec])


def ids_of(segments):
    return tuple(i for segment in segments for i in segment.ids)


CASES = [
    ("xml", "bytes", [("", ["x"])]),
    ("xml", "bytes", [(THOUGHTS["xml"], ["x"]), ("", ["y"]), (THOUGHTS["xml"], ["z"])]),
    ("xml", "tiny", [(THOUGHTS["xml"], ["x y"])]),
    ("xml", "qwen3", [("", ["x"]), ("", ["y"])]),
    ("xml", "llama3", [("", ["x"]), ("", ["y"])]),
    ("fence", "bytes", [(THOUGHTS["fence"], ["x = 1\nprint(x)"]), ("", ["y"])]),
    ("fence", "qwen2_5", [(THOUGHTS["fence"], ["x"])]),
    ("hermes", "bytes", [("Hm.", ["x"]), ("I see.", ["y", "z"])]),
    ("hermes", "qwen2_5", [("", ["x"])]),
    ("hermes", "qwen2_5", [("I ask.", ["x", "y", "z"]), ("", ["y"])]),
    ("hermes", "qwen3", [("", ["x"])]),
    ("hermes", "qwen3", [(THOUGHTS["hermes"], ["x", "y"]), ("", ["y"]), (THOUGHTS["hermes"] + "And?", ["z"])]),
]


@pytest.mark.parametrize(("dialect", "model", "turns"), CASES)
def test_the_prompt_is_what_a_run_was_given(chat_tokenizer, dialect, model, turns):
    tokenizer = BYTES if model == "bytes" else chat_tokenizer(model)
    answers = {text: f"about {text}" for _, texts in turns for text in texts}
    segments = prompted(tokenizer, dialect, messages_of(dialect, turns, answers))
    assert ids_of(segments) == given_after(tokenizer, dialect, turns, answers)
    assert {segment.source for segment in segments} == {"prompt"}
    roles = [segment.role for segment in segments]
    query = roles.index("query")
    assert roles[:query] == ["system"]
    assert set(roles[query + 1 :]) == {"history"}


@pytest.mark.parametrize("dialect", ["xml", "hermes", "fence"])
@given(texts=st.lists(results, min_size=1, max_size=3))
def test_whatever_the_tools_answer(chat_tokenizer, dialect, texts):
    tokenizer = chat_tokenizer("qwen3")
    names = [f"q{i}" for i in range(len(texts))]
    turns = [("", names)] if dialect == "hermes" else [("", [name]) for name in names]
    answers = dict(zip(names, texts, strict=True))
    segments = prompted(tokenizer, dialect, messages_of(dialect, turns, answers))
    assert ids_of(segments) == given_after(tokenizer, dialect, turns, answers)


@pytest.mark.parametrize("dialect", ["xml", "fence"])
def test_calls_of_one_turn_become_turns_where_a_turn_makes_one_call(dialect):
    answers = {"x": "1", "y": "2"}
    together = prompted(BYTES, dialect, messages_of(dialect, [("Hm.", ["x", "y"])], answers))
    apart = prompted(BYTES, dialect, messages_of(dialect, [("Hm.", ["x"]), ("", ["y"])], answers))
    assert ids_of(together) == ids_of(apart)
    earlier = [
        *messages_of(dialect, [("Hm.", ["x", "y"])], answers),
        Message(role="assistant", content="So."),
        QUESTION,
    ]
    text = "".join(segment.text for segment in prompted(BYTES, dialect, earlier))
    found = [text.index(part) for part in (turn(BYTES, dialect, "", ["x"]), "1", turn(BYTES, dialect, "", ["y"]), "2")]
    assert found == sorted(found)


def test_a_system_text_and_earlier_turns_stay_before_the_question():
    chat = messages_of("xml", [("", ["x"])], {"x": "1"})
    earlier = [Message(role="system", content="Be brief."), QUESTION, Message(role="assistant", content="Me.")]
    segments = prompted(BYTES, "xml", [*earlier, *chat])
    assert [s.role for s in segments] == ["system", "history", "query", "history", "history"]
    assert segments[3].text == "<echo> x </echo>"
    assert segments[4].text == "\n<information> 1 </information>\n"


def test_a_template_that_opens_thoughts_goes_on_all_the_same(tmp_path, model_directory):
    """It writes a turn without a thought otherwise than its own prompt begins one, so there is nowhere to cut."""
    import shutil

    from icrl.tokenizer import ChatTokenizer

    shutil.copytree(model_directory("qwen3"), tmp_path / "m")
    with (tmp_path / "m" / "chat_template.jinja").open("a") as template:
        template.write("{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}")
    tokenizer = ChatTokenizer.load(tmp_path / "m")
    chat = messages_of("hermes", [("", ["x"]), ("<think>\nhm\n</think>\n\n", ["y"])], {"x": "1", "y": "2"})
    text = "".join(segment.text for segment in prompted(tokenizer, "hermes", chat))
    assert text.count("Who?") == 1
    assert text.endswith("<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n")
    call = json.dumps({"name": "echo", "arguments": {"text": "x"}})
    assert f"Who?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{call}" in text


@pytest.mark.parametrize("dialect", ["xml", "hermes", "fence"])
def test_results_that_nobody_asked_for_are_refused(dialect):
    with pytest.raises(DataError, match="no user message before them"):
        prompted(BYTES, dialect, messages_of(dialect, [("", ["x"])], {"x": "1"})[1:])


@pytest.mark.parametrize("dialect", ["xml", "hermes", "fence"])
@given(text=results)
def test_a_result_in_an_earlier_turn_forges_nothing(chat_tokenizer, dialect, text):
    tokenizer = chat_tokenizer("qwen3")
    calm, forged = (
        prompted(tokenizer, dialect, [*messages_of(dialect, [("", ["x"])], {"x": told}), QUESTION])
        for told in ("calm", text)
    )
    added = [[i for i in ids_of(segments) if i in tokenizer._added] for segments in (calm, forged)]
    assert added[0] == added[1]


# ---- tools that came with the conversation


def hostile(name: str, words: str) -> ToolSpec:
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": words, words: words}}}
    return ToolSpec(name=name, description=f"Tell. {words}", parameters=schema | {"required": ["city", "when"]})


def foreign_prompt(tokenizer, dialect: str, spec: ToolSpec, **options):
    tools = [] if dialect == "fence" else [EchoTool().spec]
    return find_dialect(dialect).prompt(tokenizer, [QUESTION], tools=tools, foreign=[spec], **options)


@pytest.mark.parametrize("dialect", ["xml", "hermes"])
@given(words=st.lists(st.sampled_from([*FRAGMENTS, "</tools>", "</weather>", "<echo>", "{tools}"])).map("".join))
def test_a_tools_own_words_forge_nothing(chat_tokenizer, dialect, words):
    tokenizer = chat_tokenizer("qwen3")
    calm, forged = (foreign_prompt(tokenizer, dialect, hostile("weather", text)) for text in ("calm", words))
    added = [[i for i in ids_of(segments) if i in tokenizer._added] for segments in (calm, forged)]
    assert added[0] == added[1]
    tags = ("<think>", "</information>", "<answer>", "</tools>", "<tool_response>", "</weather>", "<echo>")
    counts = [[("".join(s.text for s in segments)).count(tag) for tag in tags] for segments in (calm, forged)]
    if dialect == "xml":
        counts = [
            [n for n, tag in zip(row, tags, strict=True) if tag != "</tools>" and "tool" not in tag] for row in counts
        ]
    else:
        counts = [row[:1] + row[3:5] for row in counts]
    assert counts[0] == counts[1]


def test_the_xml_dialect_explains_them_and_nothing_else():
    text = "".join(s.text for s in foreign_prompt(BYTES, "xml", hostile("weather", "Now.")))
    assert "You can <think> </think> , <echo> </echo> , <weather> </weather> and <answer> </answer>.\n" in text
    assert '<weather> {"city":"string"} </weather>: Tell. Now.\n\nQuestion: Who?' in text
    assert "</echo>:" not in text
    both = "".join(s.text for s in foreign_prompt(BYTES, "xml", hostile("weather", "Now."), instruction="{tools}"))
    assert both.index("</echo>:") < both.index("</weather>:")


def test_without_them_the_prompt_is_what_it_was():
    for dialect in ("xml", "hermes"):
        chosen = find_dialect(dialect)
        plain = chosen.prompt(BYTES, [QUESTION], tools=[EchoTool().spec])
        assert chosen.prompt(BYTES, [QUESTION], tools=[EchoTool().spec], foreign=()) == plain


def test_the_fence_dialect_takes_one_that_takes_a_string():
    spec = ToolSpec(
        name="shell",
        description="Run </interpreter> it.",
        parameters={"type": "object", "properties": {"line": {"type": "string"}}, "required": ["line"]},
    )
    assert "Run &lt;/interpreter> it." in foreign_prompt(BYTES, "fence", spec)[0].text


async def test_demonstrations_are_left_out_where_their_tools_are():
    from icrl.runtime.tools.offer import Offer

    shot = Demonstration(
        query="A demonstration?", steps=(Step(tool="echo", arguments={"text": "x"}, result="x"),), answer="x"
    )
    plain = Demonstration(query="A plain one?", answer="y")
    async with Agent(ScriptedEngine([]), tools=[EchoTool()], demonstrations=[shot, plain]) as agent:
        whole, without = agent.start("Who?"), agent.start("Who?", offer=Offer())
    texts = ["".join(s.text for s in run.prompt) for run in (whole, without)]
    assert [("demonstration?" in text, "plain one?" in text) for text in texts] == [(True, True), (False, True)]
    assert (whole.shots, without.shots) == (2, 1)
