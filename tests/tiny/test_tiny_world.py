from __future__ import annotations

import json
from itertools import chain, combinations
from pathlib import Path

import pytest
import yaml

from icrl import tiny
from icrl.tiny import words
from icrl.tiny.world import QUESTIONS, Document, World, top_documents, write_world

WORLD = World()


def test_sizes():
    assert len(WORLD.documents) == len({d.id for d in WORLD.documents}) == 1600
    assert len(WORLD.held_out) == 400
    assert len(WORLD.train) == 292 * 4
    assert len(WORLD.demonstrations) == 8


def test_training_demonstrations_and_held_out_share_no_entity():
    sets = [{t.metadata["entity"] for t in tasks} for tasks in (WORLD.train, WORLD.held_out)]
    shown = {d.steps[0].arguments["query"].split()[-1] for d in WORLD.demonstrations}
    assert [len(s) for s in (*sets, shown)] == [292, 100, 8]
    assert len(set(chain(*sets, shown))) == 400


@pytest.mark.parametrize("tasks", [WORLD.train, WORLD.held_out])
def test_every_question_is_answered_by_its_document(tasks):
    texts = {d.id: d.text for d in WORLD.documents}
    for task in tasks:
        attribute, entity = task.metadata["attribute"], task.metadata["entity"]
        assert texts[task.id] == f"The {attribute} of {entity} is {task.answers[0]}."
        assert task.query in [q.format(a=attribute, e=entity) for q in QUESTIONS]


def test_no_name_of_the_world_is_a_word():
    spoken = {w.lower() for w in (*words.WORDS, *words.TAGS, *words.ATTRIBUTES)}
    names = {n for facts in WORLD.facts for f in facts for n in (f.entity, f.value)}
    assert not {n.lower() for n in names & set(words.NAMES)} & spoken


def test_any_three_demonstrations_show_two_kinds_of_answer():
    kinds = [(d.answer.isdigit(), d.answer in words.NAMES) for d in WORLD.demonstrations]
    same = [trio for trio in combinations(kinds, 3) if len(set(trio)) == 1]
    assert len(same) <= 4
    assert len({d.answer for d in WORLD.demonstrations}) == 8


def test_all_wordings_are_used_about_equally():
    starts = [t.query.split()[0] for t in WORLD.train]
    assert all(0.2 < starts.count(q.split()[0]) / len(starts) < 0.3 for q in QUESTIONS)


def test_searching_the_ideal_query_finds_the_fact():
    for task in WORLD.held_out[:20]:
        query = f"{task.metadata['attribute']} of {task.metadata['entity']}"
        assert top_documents(query, WORLD.documents, 2)[0].id == task.id


def test_demonstrations_show_what_the_search_returns():
    for demonstration in WORLD.demonstrations:
        (step,) = demonstration.steps
        found = top_documents(step.arguments["query"], WORLD.documents, 2)
        assert step.result == " ".join(d.text for d in found)
        assert f" is {demonstration.answer}." in found[0].text


def test_shipped_files_are_what_the_code_computes(tmp_path: Path):
    write_world(WORLD, tmp_path)
    for path in (tiny.CORPUS, tiny.TRAIN, tiny.HELD_OUT, tiny.DEMONSTRATIONS):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_shipped_files_have_the_documented_fields():
    for path, fields in ((tiny.CORPUS, {"id", "text"}), (tiny.TRAIN, {"id", "question", "answers", "metadata"})):
        assert all(set(json.loads(line)) == fields for line in path.read_text().splitlines())
    for record in yaml.safe_load(tiny.DEMONSTRATIONS.read_text()):
        assert set(record) == {"question", "steps", "answer"}
        assert isinstance(record["answer"], str)


def test_another_seed_is_another_world():
    other = World(seed=1)
    assert other.documents != WORLD.documents
    assert World(seed=1).train == other.train


def test_search_prefers_rare_words_and_earlier_documents():
    texts = ["a b", "a c", "a b"]
    documents = [Document(id=str(i), text=t) for i, t in enumerate(texts)]
    assert [d.id for d in top_documents("c", documents, 3)] == ["1"]
    assert [d.id for d in top_documents("B a", documents, 2)] == ["0", "2"]
    assert top_documents("nothing", documents, 2) == []
    assert top_documents("a", [], 2) == []


def test_package_stays_small():
    total = sum(p.stat().st_size for p in Path(tiny.__file__).parent.rglob("*") if "__pycache__" not in p.parts)
    assert total < 8_000_000
