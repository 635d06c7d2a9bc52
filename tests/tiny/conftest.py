"""What tests of the embedded model share: one thread, since the model is too small to gain from more."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from icrl.tiny import BASE_DIR


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BASE_DIR / "tokenizer.json"))
