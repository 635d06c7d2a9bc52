"""What a server reports of the tokens it sampled, against a full forward pass of the weights that it names."""

import copy

import torch

ROUNDING = 5e-4
"""Float32 in the server, with weights as noisy as in these tests, was measured to be up to 2e-4 off in 300 tokens.
Other weights are at least 1e-1 off."""


def gaps(model, prompt, reply):
    """For every sampled token, the difference of its log-probability; in float64, so that only one side rounds."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = exact(torch.tensor([[*prompt, *reply.ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
    return (expected - torch.tensor(reply.logprobs, dtype=torch.float64)).abs()


def distance(model, prompt, reply):
    """The largest of the gaps."""
    return gaps(model, prompt, reply).max().item()
