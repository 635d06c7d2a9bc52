"""The embedded model and world: a one-million-parameter base and a fictional corpus to learn search in.

    BASE_DIR          Hugging Face directory of the base model and its tokenizer
    CORPUS            1600 documents, JSONL of {id, text}
    TRAIN, HELD_OUT   questions, JSONL of {id, question, answers, metadata}
    DEMONSTRATIONS    8 worked examples, YAML

`icrl.tiny.world` computes the last four, `python -m icrl.tiny.pretrain` makes the first.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["BASE_DIR", "CORPUS", "DEMONSTRATIONS", "HELD_OUT", "TRAIN"]

_HERE = Path(__file__).parent

BASE_DIR = _HERE / "base"
CORPUS = _HERE / "corpus.jsonl"
TRAIN = _HERE / "train.jsonl"
HELD_OUT = _HERE / "heldout.jsonl"
DEMONSTRATIONS = _HERE / "demonstrations.yaml"
