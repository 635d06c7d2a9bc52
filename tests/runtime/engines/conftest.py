"""Small random models, in float32, and what the tests of the in-process engine do with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from icrl.runtime.engines.local import LocalEngine, LocalEngineConfig

VOCAB = 96
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 192,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def build_model(kind: str, **changes: Any) -> Any:
    """Build a random causal model whose next-token distributions are far from uniform."""
    import transformers

    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


class Letters:
    """A tokenizer of one to three letters a token; the last ids are single bytes of a two-byte character."""

    table = (
        *"abcdefghijklmnopqrstuvwxyz<>/ ",
        "ab",
        "b>",
        "</",
        "</a",
        "a>",
        ">x",
        "x</",
        "c</d>",
        "d>",
        ">>",
        "</d",
        ">",
    )

    def decode(self, ids: Sequence[int]) -> str:
        """Concatenate the pieces of the tokens."""
        pieces = [b"\xc3" if i == VOCAB - 1 else b"\xa9" if i == VOCAB - 2 else self.piece(i) for i in ids]
        return b"".join(pieces).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token."""
        return self.table[token % len(self.table)].encode()


@pytest.fixture(scope="session")
def build() -> Callable[..., Any]:
    """The model builder."""
    return build_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Directory of a random model of some architecture; equal arguments give the same directory."""
    known: dict[str, str] = {}

    def directory(kind: str = "Qwen2", **changes: Any) -> str:
        key = repr((kind, sorted(changes.items())))
        if key not in known:
            path: Path = tmp_path_factory.mktemp(kind)
            build_model(kind, **changes).save_pretrained(path)
            known[key] = str(path)
        return known[key]

    return directory


@pytest.fixture(scope="session")
def reference(saved: Callable[..., str]) -> Callable[..., Any]:
    """The same model, run by transformers alone."""
    known: dict[str, Any] = {}

    def model(kind: str = "Qwen2", **changes: Any) -> Any:
        import transformers

        directory = saved(kind, **changes)
        if directory not in known:
            transformers.utils.logging.disable_progress_bar()
            loaded = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            known[directory] = loaded.eval()
        return known[directory]

    return model


@pytest.fixture(params=["compiled", "dense"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to attend while decoding; without it, tests use the compiled one."""
    monkeypatch.setattr("icrl.runtime.engines.loading.available", lambda: request.param == "compiled")
    return request.param


@pytest.fixture
async def engine(saved: Callable[..., str]) -> AsyncIterator[LocalEngine]:
    """An engine over the random Qwen2."""
    engine = LocalEngine(LocalEngineConfig(model=saved(), threads=1, max_kv_tokens=1 << 16), tokenizer=Letters())
    yield engine
    await engine.aclose()
