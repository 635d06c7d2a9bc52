"""The embedded model and worlds: a one-million-parameter base, a fictional corpus to search, and sums to work out.

    BASE_DIR          Hugging Face directory of the base model and its tokenizer
    CORPUS            1600 documents, JSONL of {id, text}
    TRAIN, HELD_OUT   questions about it, JSONL of {id, question, answers, metadata}
    DEMONSTRATIONS    8 worked examples, YAML
    CODE_TRAIN, CODE_HELD_OUT, CODE_DEMONSTRATIONS   the same for arithmetic

`icrl.tiny.world` computes the corpus and what belongs to it, `icrl.tiny.arithmetic` the last three, and
`python -m icrl.tiny.pretrain` makes the first. `icrl.tiny.worlds` lists the worlds by name.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BASE_DIR",
    "CODE_DEMONSTRATIONS",
    "CODE_HELD_OUT",
    "CODE_TRAIN",
    "CORPUS",
    "DEMONSTRATIONS",
    "HELD_OUT",
    "TRAIN",
]

_HERE = Path(__file__).parent

BASE_DIR = _HERE / "base"
CORPUS = _HERE / "corpus.jsonl"
TRAIN = _HERE / "train.jsonl"
HELD_OUT = _HERE / "heldout.jsonl"
DEMONSTRATIONS = _HERE / "demonstrations.yaml"
CODE_TRAIN = _HERE / "code_train.jsonl"
CODE_HELD_OUT = _HERE / "code_heldout.jsonl"
CODE_DEMONSTRATIONS = _HERE / "code_demonstrations.yaml"
