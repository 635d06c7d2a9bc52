from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer

from icrl.tiny.model import ModelConfig, TinyQwen2
from icrl.tiny.sampler import Episode, sample_episodes

PROMPTS = ["<look> Rikor </look>\n<look> Rikor", "Bagan Bagar Bagex Bagan Bagar", "Q: 1 2 3 4 1 2 3"]


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> TinyQwen2:
    """A model that has seen no data and goes on as its prompt did before: the hand-built induction head."""
    torch.manual_seed(0)
    model = TinyQwen2(ModelConfig(vocab_size=tokenizer.get_vocab_size(), layers=2))
    model.induction_init()
    return model


def write(model, tokenizer, prompts, *, answer=lambda text: "", temperature=0.0, seed=0, stop="</look>", max_tokens=12):
    return sample_episodes(
        model, tokenizer, prompts, answer, temperature=temperature, seed=seed, stop=stop, max_tokens=max_tokens
    )


@torch.no_grad()
def test_greedy_tokens_are_those_of_a_full_pass(model: TinyQwen2, tokenizer: Tokenizer):
    for prompt, episode in zip(PROMPTS, write(model, tokenizer, PROMPTS), strict=True):
        start = tokenizer.encode(prompt).ids
        logits = model(torch.tensor([start + episode.ids]))[0]
        assert logits[len(start) - 1 : -1].argmax(-1).tolist() == episode.ids


def test_rows_do_not_disturb_each_other(model: TinyQwen2, tokenizer: Tokenizer):
    together = write(model, tokenizer, PROMPTS)
    alone = [write(model, tokenizer, [p])[0] for p in PROMPTS]
    assert [e.ids for e in together] == [e.ids for e in alone]


def test_stop_text_ends_a_row(model: TinyQwen2, tokenizer: Tokenizer):
    (episode,) = write(model, tokenizer, PROMPTS[:1])
    assert episode.done
    assert episode.text == " </look>"


def test_budget_ends_a_row(model: TinyQwen2, tokenizer: Tokenizer):
    episodes = write(model, tokenizer, PROMPTS, stop="never", max_tokens=5)
    assert all(len(e.ids) <= 5 for e in episodes)
    assert not all(e.done for e in episodes)


def test_observation_is_read_before_the_row_goes_on(model: TinyQwen2, tokenizer: Tokenizer):
    asked: list[str] = []

    def answer(text: str) -> str:
        asked.append(text)
        return "\nRikor is red." if len(asked) == 1 else ""

    (episode,) = write(model, tokenizer, PROMPTS[:1], answer=answer, stop="never", max_tokens=20)
    assert asked[0] == " </look>"
    assert episode.text.startswith(" </look>\nRikor is red.")
    assert episode.observations == 1
    assert tokenizer.decode(episode.ids) == episode.text


def test_draws_follow_the_seed(model: TinyQwen2, tokenizer: Tokenizer):
    def texts(seed: int) -> list[str]:
        return [e.text for e in write(model, tokenizer, PROMPTS * 3, temperature=1.0, seed=seed)]

    assert texts(1) == texts(1) != texts(2)


def test_equal_prompts_draw_differently(model: TinyQwen2, tokenizer: Tokenizer):
    episodes = write(model, tokenizer, ["Tell"] * 8, temperature=1.5)
    assert len({e.text for e in episodes}) > 1


def test_an_episode_starts_empty():
    assert (Episode().text, Episode().ids, Episode().done) == ("", [], False)
