from __future__ import annotations

import re
from random import Random

from icrl.tiny import episodes
from icrl.tiny.episodes import _IGNORANCE, draw_choices, draw_episodes
from icrl.tiny.subjects import FieldKind, draw_sum, fact_subject, sum_subject

KINDS: tuple[FieldKind, ...] = ("thought", "key", "evidence", "answer")


def test_sums_are_right():
    random = Random(0)
    for _ in range(300):
        expression, value = draw_sum(random)
        assert re.fullmatch(r"[0-9+*() -]+", expression)
        assert eval(expression) == value


def test_facts_can_be_answered_from_the_evidence():
    for seed in range(100):
        record = fact_subject(Random(seed), ("evidence", "answer"))()
        evidence, answer = record.fields
        assert set(re.findall(r"\w+", answer)) & set(re.findall(r"\w+", evidence))


def test_sum_records_show_expression_and_value():
    for seed in range(100):
        draw = sum_subject(Random(seed), KINDS)
        record = draw()
        found = re.search(r"\d[0-9+*() -]*\d|\( .* \d+", record.question)
        assert found
        assert len(record.fields) == len(KINDS)
        assert re.search(r"-?\d+", record.fields[2])


def test_records_of_a_document_share_their_wording():
    draw = sum_subject(Random(3), ("key",))
    shapes = {re.sub(r"[0-9+*() -]+", "#", draw().fields[0]) for _ in range(10)}
    assert len(shapes) == 1


def test_chat_documents_leave_the_last_record_to_the_assistant():
    chats = [t for t in (draw_episodes(Random(s), (3, 3), 0.0) for s in range(60)) if "<|im_start|>" in t]
    assert 15 < len(chats) < 45
    for text in chats:
        user, assistant = text.split("<|im_end|>\n<|im_start|>assistant\n")
        assert user.startswith("<|im_start|>user\n")
        assert assistant


def test_number_of_records_is_kept():
    for seed in range(40):
        text = draw_episodes(Random(seed), (4, 4), 0.0)
        assert len(re.split(r"\n\n|\n", text)) >= 4


def mentioned(text: str) -> set[str]:
    """Tags that a first line shows as `<tag> </tag>`, wherever it ends."""
    head = text.removeprefix("<|im_start|>user\n").split("uestion: ")[0].split("\n")[0]
    return set(re.findall(r"<(\w+)> </\1>(?= ,| and|[.:\n]|$)", head))


def test_a_lone_record_never_uses_the_tags_its_head_shows():
    shown = 0
    for seed in range(1500):
        user, assistant = draw_episodes(Random(seed), (1, 1), 0.2).split("<|im_end|>\n<|im_start|>assistant\n")
        tags = mentioned(user) - {"end"}  # two ways of marking close with that word
        shown += bool(tags)
        assert not any(re.search(rf"[<\[{{(#`=] ?{t}\b", assistant) for t in tags), user
    assert shown > 100


def test_most_lone_questions_are_met_with_ignorance():
    replies = [draw_episodes(Random(s), (1, 1), 0.2).split("assistant\n")[-1] for s in range(1000)]
    openings = tuple(text.partition("{")[0] for text in _IGNORANCE)
    assert 0.5 < sum(r.startswith(openings) for r in replies) / 1000 < 0.7


def test_heads_show_foreign_tags_of_the_records_own_sort():
    """Otherwise a rare word in the head would give away that the records use it."""
    sorts = {True: set(), False: set()}
    for seed in range(8000):
        text = draw_episodes(Random(seed), (3, 3), 0.2)
        for tag in mentioned(text):
            own = len(re.findall(rf"\b{tag}\b", text, re.IGNORECASE)) > 4
            sorts[own] |= {tag[0].isupper()}
    assert sorts == {True: {True, False}, False: {True, False}}


def test_heads_over_several_records_show_their_tags_as_often_as_not(monkeypatch):
    monkeypatch.setattr(episodes, "_ALONE", 0.0)
    own = other = 0
    for seed in range(6000):
        text = draw_episodes(Random(seed), (3, 3), 0.2)
        for tag in mentioned(text):
            if len(re.findall(rf"\b{tag}\b", text, re.IGNORECASE)) > 4:
                own += 1
            else:
                other += 1
    assert 0.3 < own / (own + other) < 0.7


def keys(text: str) -> dict[bool, set[str]]:
    """Tags around an expression that stands alone, and tags around anything else that a key may be."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for record in re.split(r"\n\n|\n##\n|\n---\n|<\|im_end\|>", text):
        fields = re.findall(r"<(\w+)>\s*([^<>]*?)\s*</\1>", record)
        if len(fields) == 1:
            found[bool(re.search(r"\d [-+*] ", record))].add(fields[0][0])
    return found


def test_choices_give_each_kind_of_question_a_tag_of_its_own():
    told = 0
    for seed in range(2000):
        sums, facts = (keys(draw_choices(Random(seed)))[kind] for kind in (True, False))
        if len(sums) == len(facts) == 1:
            told += 1
            assert sums != facts
    assert told > 20


def test_choices_show_both_kinds_before_the_last_question():
    for seed in range(300):
        shown = draw_choices(Random(seed)).split("<|im_end|>")[0]
        assert re.search(r"\d ?[-+*] ?\d|\) ?[-+*]", shown)
        assert re.search(r"[A-Z][a-z]+[nrx]", shown)
