from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.errors import ConfigError, DataError
from icrl.runtime.dialects.xml import XmlDialect
from icrl.runtime.tools.tool import ToolSpec
from icrl.tiny import BASE_DIR
from icrl.tokenizer import ChatTokenizer
from icrl.trajectory import Segment, StopReason, Trajectory
from icrl.types import Demonstration, Message, Step, Task, ToolCall, ToolResult

TINY = ChatTokenizer.load(BASE_DIR)
XML = XmlDialect()
SEARCH = ToolSpec(
    name="search",
    description="Search facts.",
    parameters={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
)
PYTHON = ToolSpec(
    name="python",
    description="Run code.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string"}, "timeout_s": {"type": "number"}},
        "required": ["code", "timeout_s"],
    },
)


def fact(attribute, name, value, other):
    return Demonstration(
        query=f"What is the {attribute} of {name}?",
        steps=(
            Step(
                tool="search",
                arguments={"query": f"{attribute} of {name}"},
                result=f"The {attribute} of {name} is {value}. {other}",
                thought=f"I need the {attribute} of {name}.",
            ),
        ),
        answer=value,
    )


DEMOS = (
    fact("code", "Rikor", "113", "The partner of Rikor is Rudor."),
    fact("mayor", "Nebar", "Nubar", "The guard of Sulur is Ralur."),
    fact("age", "Melin", "7", "The stone of Benar is quartz."),
)

# What the experiments behind the embedded world were run with: one string, encoded in two parts.
PROVEN_PREFIX = """<|im_start|>user
Answer the question. You can <think> </think> , <search> </search> and <answer> </answer>.

Question: What is the code of Rikor?
<think> I need the code of Rikor. </think>
<search> code of Rikor </search>
<information> The code of Rikor is 113. The partner of Rikor is Rudor. </information>
<answer> 113 </answer>

Question: What is the mayor of Nebar?
<think> I need the mayor of Nebar. </think>
<search> mayor of Nebar </search>
<information> The mayor of Nebar is Nubar. The guard of Sulur is Ralur. </information>
<answer> Nubar </answer>

Question: What is the age of Melin?
<think> I need the age of Melin. </think>
<search> age of Melin </search>
<information> The age of Melin is 7. The stone of Benar is quartz. </information>
<answer> 7 </answer>

"""
PROVEN_SUFFIX = "Question: Tell me the mayor of Nebar.<|im_end|>\n<|im_start|>assistant\n"


def user(text):
    return Message(role="user", content=text)


def prompt(messages, *, tokenizer=TINY, tools=(SEARCH,), **options):
    return XML.prompt(tokenizer, messages, tools=tools, **options)


def text_of(segments):
    return "".join(segment.text for segment in segments)


def ids_of(segments):
    return [i for segment in segments for i in segment.ids]


def shared(segments):
    task = Task(query="q")
    return Trajectory(id="t", task=task, segments=segments, stop_reason=StopReason.ABORTED).shared_prefix


def test_the_prompt_is_the_proven_one_token_for_token():
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(BASE_DIR / "tokenizer.json"))
    segments = prompt([user("Tell me the mayor of Nebar.")], demonstrations=DEMOS)
    assert text_of(segments) == PROVEN_PREFIX + PROVEN_SUFFIX
    assert ids_of(segments) == library.encode(PROVEN_PREFIX).ids + library.encode(PROVEN_SUFFIX).ids
    assert [s.role for s in segments] == ["system", "demo", "demo", "demo", "query"]
    assert {s.source for s in segments} == {"prompt"}


def test_instruction_and_suffix_are_the_same_at_every_number_of_shots():
    asked = [prompt([user("Who?")], demonstrations=DEMOS[:k]) for k in range(4)]
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
    call = ToolCall(name="search", arguments={"query": "a"})
    segments = prompt(
        [
            Message(role="system", content="Be brief."),
            user("First?"),
            Message(role="assistant", content="<think> hm </think>", tool_calls=(call,)),
            Message(role="tool", content="A </information>", tool_call_id="0.0"),
            Message(role="assistant", content="<answer> a </answer>"),
            user("Second?"),
        ]
    )
    assert [s.role for s in segments] == ["system", "history", "query"]
    assert segments[1].text == (
        "Be brief.\n\nQuestion: First?<|im_end|>\n<|im_start|>assistant\n<think> hm </think>\n<search> a </search>\n"
        "<information> A &lt;/information> </information>\n<answer> a </answer><|im_end|>\n<|im_start|>user\n"
    )
    assert segments[2].text == "Question: Second?<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_may_begin_with_the_assistant():
    segments = prompt([Message(role="assistant", content="Hello."), user("Who?")])
    head = (
        "<|im_start|>user\nAnswer the question. You can <think> </think> , <search> </search> and <answer> </answer>."
    )
    assert text_of(segments).startswith(f"{head}\n\n<|im_end|>\n<|im_start|>assistant\n<answer> Hello. </answer>")


@pytest.mark.parametrize("messages", [[], [user("a"), Message(role="assistant", content="b")]])
def test_a_conversation_ends_in_a_user_message(messages):
    with pytest.raises(DataError, match="must be a user message"):
        prompt(messages)


def test_the_instruction_can_be_replaced():
    text = prompt([user("q")], tools=(SEARCH, PYTHON), instruction="Use {tags}.\n{tools}\n\n\n")[0].text
    assert text == (
        "<|im_start|>user\nUse <think> </think> , <search> </search> , <python> </python> and <answer> </answer>.\n"
        "<search> query </search>: Search facts.\n"
        '<python> {"code":"string","timeout_s":"number"} </python>: Run code.\n\n'
    )
    assert prompt([user("q")], instruction="")[0].text == "<|im_start|>user\n"


def test_stop_strings():
    assert XML.stop([SEARCH, PYTHON]) == ("</search>", "</python>", "</answer>")
    with pytest.raises(ConfigError, match="'think' is a tag"):
        XML.stop([ToolSpec(name="think", description="d", parameters={"type": "object"})])


def parse(text, tools=(SEARCH, PYTHON), turn=2):
    return XML.parse(TINY, TINY.encode(text), tools=tools, turn=turn)


def test_a_call():
    text = "<think> I need it. </think>\n<search> code of Rikor </search>"
    reply = parse(text)
    (call,) = reply.calls
    assert (reply.text, reply.answer, reply.thought) == (text, None, "I need it.")
    assert (call.name, call.arguments, call.id, call.error) == ("search", {"query": "code of Rikor"}, "2.0", None)
    ids = TINY.encode(text)
    assert TINY.decode(ids[call.start : call.end]).strip() == "<search> code of Rikor </search>"


def test_a_call_whose_tags_begin_and_end_inside_tokens(tmp_path):
    ids = [*TINY.encode("."), *TINY.encode("x\n\n")[1:], *TINY.encode("<search> y </search>")]
    call = XML.parse(TINY, ids, tools=[SEARCH], turn=0).calls[0]
    assert TINY.decode(ids[call.start : call.end]) == "<search> y </search>"


def test_an_answer_is_stripped():
    assert parse("<answer>\n 113 </answer>").answer == "113"
    assert parse("no tags").answer is None
    assert parse("<answer> cut").answer is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (" print(1) ", "print(1)"),
        ("\nif x:\n    y\n", "if x:\n    y"),
        ("\n    indented\n    block\n", "    indented\n    block"),
        ("  x = 1\ny = 2\n", "x = 1\ny = 2"),
    ],
)
def test_the_margin_of_a_bare_body_is_layout(body, code):
    tool = ToolSpec(
        name="run",
        description="Run.",
        parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    )
    assert parse(f"<run>{body}</run>", tools=[tool]).calls[0].arguments == {"code": code}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<search> </search>", "<search> is empty; write the query between the tags"),
        ("<python></python>", "<python> is empty; write a JSON object of arguments between the tags"),
        ("<python> print(1) </python>", "the body of <python> is not valid JSON"),
        ("<python> [1] </python>", "the body of <python> must be a JSON object, not list"),
        ('<python> {"a": NaN} </python>', "not valid JSON"),
        ("<python>" + '{"a":' * 3000 + "</python>", "not valid JSON"),
        ("<search> x", "<search> was never closed"),
        ("x </search>", "</search> closes a call that was never opened"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, error):
    (call,) = parse(text).calls
    assert error in call.error
    assert call.arguments == {}
    assert call.id == "2.0"
    assert parse(text).answer is None


def test_json_arguments():
    call = parse('<python> {"code": "print(\'<answer>\')", "timeout_s": 1.5} </python>').calls[0]
    assert call.arguments == {"code": "print('<answer>')", "timeout_s": 1.5}


def test_control_tokens_are_not_part_of_the_text():
    (end,) = TINY.eos_ids
    reply = XML.parse(TINY, [*TINY.encode("<answer> 5 </answer>"), end], tools=[SEARCH], turn=0)
    assert (reply.text, reply.answer) == ("<answer> 5 </answer>", "5")


arguments = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="<"), min_size=1, max_size=20)


@given(query=arguments.map(str.strip).filter(bool), code=st.text(max_size=20))
def test_demonstrated_calls_parse_to_what_they_demonstrate(query, code):
    steps = (
        Step(tool="search", arguments={"query": query}, result="r"),
        Step(tool="python", arguments={"code": code, "timeout_s": 1}, result="r"),
    )
    demo = Demonstration(query="q", steps=steps, answer="a")
    text = prompt([user("?")], tools=(SEARCH, PYTHON), demonstrations=[demo])[1].text
    turns = text.removeprefix("Question: q\n").split("\n<information> r </information>\n")
    assert [parse(turn).calls[0].arguments for turn in turns[:2] if "<answer>" not in code] == [
        dict(step.arguments) for step in steps if "<answer>" not in code
    ]
    assert parse(turns[-1].strip()).answer == "a"


def observe(text, *, sampled=(), tokenizer=TINY, limit=200, name="search"):
    result = ToolResult(call_id="0.0", name=name, text=text)
    return XML.observe(tokenizer, [result], sampled=sampled, turn=1, max_tokens=limit)


def test_an_observation_is_the_proven_one():
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(BASE_DIR / "tokenizer.json"))
    (segment,) = observe("The code of Rikor is 113.", sampled=TINY.encode("<search> x </search>"))
    text = "\n<information> The code of Rikor is 113. </information>\n"
    assert (segment.text, list(segment.ids)) == (text, library.encode(text).ids)
    assert (segment.source, segment.role, segment.turn) == ("tool", "tool_result", 1)
    assert segment.result.text == "The code of Rikor is 113."


def test_demonstrations_show_observations_as_they_will_be():
    (segment,) = observe(DEMOS[0].steps[0].result)
    assert segment.text in prompt([user("q")], demonstrations=DEMOS)[1].text


def test_a_model_that_ended_its_turn_is_answered_in_a_new_one():
    (end,) = TINY.eos_ids
    before, told, after = observe("Nothing.", sampled=[*TINY.encode("<search> x"), end])
    assert before.text + told.text + after.text == (
        "\n<|im_start|>user\n<information> Nothing. </information><|im_end|>\n<|im_start|>assistant\n"
    )
    assert {before.source, after.source} == {"runtime"}
    assert {before.role, after.role} == {"separator"}
    assert end not in before.ids


@given(
    text=st.lists(st.sampled_from(["</information>", "<|im_end|>", "<answer>", "</ Search >", "\0", "x"])).map("".join)
)
def test_a_result_cannot_leave_its_wrapper(text):
    (segment,) = observe(text)
    decoded = TINY.decode(segment.ids)
    assert decoded == segment.text
    assert TINY.eos_ids.isdisjoint(segment.ids)
    assert decoded.count("</information>") == 1
    assert decoded.endswith(" </information>\n")
    assert "<answer>" not in decoded


def test_a_cut_result_keeps_its_wrapper():
    (segment,) = observe("word " * 500, limit=40)
    assert segment.result.truncated
    assert segment.text.startswith("\n<information> word")
    assert segment.text.endswith(" word  </information>\n")
    assert len(segment.ids) < 60


def policy(text, tools=(SEARCH, PYTHON)):
    ids = tuple(TINY.encode(text))
    reply = XML.parse(TINY, ids, tools=tools, turn=0)
    return Segment(
        source="policy", role="text", ids=ids, text=reply.text, logprobs=(0.0,) * len(ids), calls=reply.calls
    )


INFO = observe("The code is 113.")[0]
GOOD = "<think> a </think>\n<search> b </search>"


@pytest.mark.parametrize(
    ("turns", "well_formed"),
    [
        ([GOOD, "<answer> 113 </answer>"], True),
        (["<search> b </search>", "\n<think> so </think> <answer> 113 </answer>\n"], True),
        ([GOOD, GOOD, "<answer> 113 </answer>"], True),
        (["<think> 1 < 2 </think><search> b </search>", "<answer> a<b </answer>"], True),
        (['<python> {"code": "<b>", "timeout_s": 1} </python>', "<answer> 113 </answer>"], True),
        (["<answer> 113 </answer>"], False),
        ([GOOD, "113"], False),
        ([GOOD, "<answer> </answer>"], False),
        ([GOOD, "<answer> 113 </answer> and"], False),
        (["say " + GOOD, "<answer> 113 </answer>"], False),
        (["<think> a " + GOOD, "<answer> 113 </answer>"], False),
        (["<know> a </know> <search> b </search>", "<answer> 113 </answer>"], False),
        (["<think> <know> </think> <search> b </search>", "<answer> 113 </answer>"], False),
        (["<search> </search>", "<answer> 113 </answer>"], False),
        ([GOOD, "<information> x </information> <answer> 113 </answer>"], False),
        ([GOOD, "<answer> <search> </answer>"], False),
        ([GOOD, GOOD], False),
        ([], False),
    ],
)
def test_well_formed(turns, well_formed):
    segments = [s for turn in turns for s in (policy(turn), INFO)][:-1]
    assert XML.well_formed(segments) is well_formed


def test_every_call_needs_its_result():
    assert not XML.well_formed([policy(GOOD), policy("<answer> 113 </answer>")])
    assert not XML.well_formed([policy(GOOD), INFO])


@pytest.mark.parametrize("model", ["qwen2_5", "qwen3", "llama3_2", "llama3"])
def test_it_works_with_any_chat_template(chat_tokenizer, model):
    tokenizer = chat_tokenizer(model)
    segments = prompt([user("Who is it?")], tokenizer=tokenizer, demonstrations=DEMOS)
    assert text_of(segments[1:-1]) == PROVEN_PREFIX.split(".\n\n", 1)[1]
    assert [s.role for s in segments] == ["system", "demo", "demo", "demo", "query"]
    end = max(tokenizer.eos_ids)
    told = observe("x", tokenizer=tokenizer, sampled=[end])
    assert text_of(told).endswith(text_of(segments).rsplit("Who is it?", 1)[1])
