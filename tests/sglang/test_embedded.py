"""SGLang in a process of ours: the engine's protocol without HTTP, in SGLang's own environment."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

import icrl
from icrl.tiny import BASE_DIR

pytestmark = pytest.mark.sglang

PROGRAM = Path(__file__).parent / "embedded_program.py"
LARGER = 1.05
"""What the program multiplies all weights by."""


@pytest.fixture(scope="module")
def found(sglang_environment):
    variables = sglang_environment.variables(os.environ)
    variables["PYTHONPATH"] += f":{Path(icrl.__file__).parent.parent}"

    async def run():
        process = await asyncio.create_subprocess_exec(
            *(str(sglang_environment.python), str(PROGRAM), str(BASE_DIR)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=variables,
        )
        async with asyncio.timeout(600):
            return process, *await process.communicate()

    process, out, err = asyncio.run(run())
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out.decode().strip().splitlines()[-1])


def test_it_is_an_engine_with_the_models_limits(found):
    config = json.loads((BASE_DIR / "config.json").read_text())
    assert found["protocol"] is True
    assert found["limits"] == [config["vocab_size"], config["max_position_embeddings"]]


def expected(ids, *, prompt=(5, 6, 7, 8), larger=1.0):
    """The log-probability of every token behind the prompt, and of the likeliest there, by a full forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(larger)
        logprobs = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist(), logprobs.max(-1).values.tolist()


def test_tokens_and_logprobs_are_those_of_a_full_forward_pass(found):
    whole = found["whole"]
    sampled, likeliest = expected(whole["ids"])
    assert whole["logprobs"] == pytest.approx(sampled, abs=1e-4)
    assert sampled == likeliest


def test_a_watched_request_says_the_same_in_pieces(found):
    assert found["streamed"]["ids"] == found["deltas"] == found["whole"]["ids"]
    assert found["streamed"]["cached"] > 0
    assert found["together"] == [found["whole"]["ids"]] * 8


def test_requests_that_would_crash_it_are_refused(found):
    empty, foreign = found["refusals"]
    assert "the prompt is empty" in empty
    assert "is outside the vocabulary" in foreign
    assert "is closed" in found["closed"]


def test_an_abort_returns_what_was_sampled(found):
    aborted = found["aborted"]
    assert aborted["finish"] == "abort"
    assert 0 < len(aborted["ids"]) == len(aborted["logprobs"]) < 600


def test_a_request_that_spans_an_update_knows_the_version_of_each_token(found):
    (old, start, middle), (new, again, end) = found["spanning"]["versions"]
    assert (old, start, new) == (0, 0, 3)
    assert 0 < middle == again < end == len(found["spanning"]["ids"])


def test_tokens_of_a_request_that_spans_one_in_place_are_of_the_weights_that_they_name(found):
    crossing = found["in_place"]
    (old, start, middle), (new, again, end) = crossing["versions"]
    assert (old, start, new) == (4, 0, 5)
    assert 0 < middle == again < end == len(crossing["ids"])
    sampled, _ = expected(crossing["ids"], prompt=found["endless"])
    assert crossing["logprobs"][:middle] == pytest.approx(sampled[:middle], abs=1e-4)
    assert crossing["logprobs"][middle:] != pytest.approx(sampled[middle:], abs=1e-3)


def test_after_an_update_in_place_nothing_stale_is_found(found):
    assert found["after"]["versions"] == [[5, 0, len(found["after"]["ids"])]]
    sampled, likeliest = expected(found["after"]["ids"], larger=LARGER)
    assert found["after"]["logprobs"] == pytest.approx(sampled, abs=1e-4)
    assert sampled == likeliest


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(found):
    assert "keeps version 4: model.norm.weight: shape (127,)" in found["misfit"]


def test_new_weights_change_what_is_sampled_and_old_ones_bring_it_back(found):
    assert found["whole"]["versions"] == [[0, 0, 6]]
    assert found["changed"]["versions"] == [[3, 0, 6]]
    assert found["changed"]["logprobs"] != pytest.approx(found["whole"]["logprobs"], abs=1e-3)
    assert found["back"]["ids"] == found["whole"]["ids"]
    assert found["back"]["logprobs"] == pytest.approx(found["whole"]["logprobs"], abs=1e-4)
    assert found["version"] == 5
