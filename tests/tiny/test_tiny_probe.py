from __future__ import annotations

import dataclasses

import pytest
from tokenizers import Tokenizer

from icrl.tiny import BASE_DIR, probe
from icrl.tiny.checkpoint import load
from icrl.tiny.probe import ProbeResult, fit
from icrl.tiny.sampler import Episode
from icrl.tiny.world import World

WORLD = World()
GOOD = (
    "<think> I need the {q}. </think>\n<search> {q} </search>\n<information> x </information>\n<answer> {v} </answer>"
)
ZERO = ProbeResult(shots=0, temperature=1.0, samples=100, call=0.0, form=0.0, exact=0.0)
THREE = ProbeResult(shots=3, temperature=1.0, samples=100, call=0.4, form=0.1, exact=0.02)


def test_prompt_is_the_chat_template_around_instruction_demonstrations_and_question():
    (shown,) = WORLD.demonstrations[:1]
    text = probe.prompt(WORLD.held_out[0], (shown,))
    head, rest = text.split("\n\n", 1)
    assert head == f"<|im_start|>user\n{probe.INSTRUCTION}"
    assert rest.startswith(f"Question: {shown.query}\n<think> I need the ")
    assert f"</search>\n<information> {shown.steps[0].result} </information>\n<answer> {shown.answer} </answer>" in rest
    assert rest.endswith(f"\n\nQuestion: {WORLD.held_out[0].query}<|im_end|>\n<|im_start|>assistant\n")


def test_instruction_names_every_tag_the_model_writes():
    assert all(f"<{t}> </{t}>" in probe.INSTRUCTION for t in ("think", "search", "answer"))


@pytest.mark.parametrize(
    ("text", "observations", "call", "form", "exact"),
    [
        (GOOD, 1, 1, 1, 1),
        (GOOD.replace("{v}", "nothing"), 1, 1, 1, 0),
        (GOOD.replace("</think>", ""), 1, 1, 0, 1),
        ("<answer> {v} </answer>", 0, 0, 0, 1),
        ("so it is", 0, 0, 0, 0),
    ],
)
def test_responses_are_judged(monkeypatch, text, observations, call, form, exact):
    def fake(model, tokenizer, prompts, answer, **options):
        facts = {t.query: t for t in WORLD.held_out}
        asked = [facts[p.split("Question: ")[-1].split("<|im_end|>")[0]] for p in prompts]
        return [Episode(text=text.format(q=t.id, v=t.answers[0]), observations=observations) for t in asked]

    monkeypatch.setattr(probe, "sample_episodes", fake)
    result = probe.probe(None, None, WORLD, shots=2, questions=30, samples=5)
    assert (result.call, result.form, result.exact) == (call, form, exact)
    assert (result.shots, result.samples) == (2, 150)


def test_search_answers_twice_and_only_complete_calls():
    search = probe._Search(WORLD)
    task = WORLD.held_out[0]
    entity = task.metadata["entity"]
    found = search(f"<search> {task.metadata['attribute']} of {entity} </search>")
    assert found.startswith("\n<information> ")
    assert task.answers[0] in found
    assert search(f"<search> {entity} </search>{found}") == ""
    assert search(f"<search> {entity}>") == ""
    assert search("<search>  </search>") == ""
    assert "no result." in search("<search> zebra </search>")
    twice = f"{found}<search> a </search>{found}<search> {entity} </search>"
    assert search(twice) == ""


@pytest.mark.parametrize(
    ("zero", "three", "verdict"),
    [
        ({}, {}, True),
        ({"form": 0.01}, {}, False),
        ({"call": 0.06}, {}, False),
        ({}, {"form": 0.01}, False),
        ({}, {"form": 0.9}, True),
    ],
)
def test_window(zero, three, verdict):
    assert fit(dataclasses.replace(ZERO, **zero), dataclasses.replace(THREE, **three)) is verdict


def test_main_prints_a_row_for_each_number_of_shots(monkeypatch, capsys):
    def fake(model, tokenizer, world, *, shots, samples):
        return dataclasses.replace(THREE if shots == 3 else ZERO, shots=shots)

    monkeypatch.setattr(probe, "probe", fake)
    probe.main(BASE_DIR)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:7] for line in lines[:4]] == [f"{k} shots" for k in range(4)]
    assert lines[4] == "fit for training"


def test_shipped_base_imitates_but_does_not_invent(tokenizer: Tokenizer):
    model = load(BASE_DIR)
    alone = probe.probe(model, tokenizer, WORLD, shots=0, questions=16, samples=1)
    shown = probe.probe(model, tokenizer, WORLD, shots=3, questions=8, samples=1, temperature=0)
    assert alone.form == alone.exact == 0
    assert shown.form > 0.5
