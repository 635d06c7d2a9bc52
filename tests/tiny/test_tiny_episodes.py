from __future__ import annotations

import re
from random import Random

from icrl.tiny.episodes import draw_episodes
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
