"""Sampling: the distribution is the softmax's, cut at top_p; a seed fixes the draw; rounding does not move it."""

import pytest
import torch

from pixellm.errors import InputError
from pixellm.inference.sampling import Greedy, Sampled

LOGITS = torch.tensor([2.0, 0.5, 1.5, -3.0, 2.2, 0.0])
NUM_DRAWS = 20_000


def frequencies(sampler):
    drawn = torch.tensor([sampler.choose(LOGITS) for _ in range(NUM_DRAWS)])
    return torch.bincount(drawn, minlength=len(LOGITS)) / NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_probabilities(temperature):
    expected = (LOGITS / temperature).softmax(-1)
    # four standard deviations of a share of NUM_DRAWS draws
    assert ((frequencies(Sampled(temperature, seed=1)) - expected).abs() < 4 * (expected * (1 - expected) / NUM_DRAWS).sqrt()).all()


def test_top_p_keeps_the_fewest_that_reach_it():
    probs = LOGITS.softmax(-1)  # 0.31, 0.07, 0.19, 0.00, 0.38, 0.04
    assert frequencies(Sampled(top_p=0.6, seed=1)).nonzero().flatten().tolist() == [0, 4]
    assert frequencies(Sampled(top_p=0.75, seed=1)).nonzero().flatten().tolist() == [0, 2, 4]
    assert frequencies(Sampled(top_p=1e-9, seed=1))[4] == 1
    kept = frequencies(Sampled(top_p=0.6, seed=1))
    assert abs(kept[4] - probs[4] / (probs[4] + probs[0])) < 0.02


def test_a_seed_fixes_the_draws_and_rounding_does_not_move_them():
    def draw(seed, noise):
        sampler = Sampled(0.8, 0.9, seed)
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(200, 300, generator=generator)
        return [sampler.choose(row + noise * torch.randn(300)) for row in logits]

    assert draw(1, 0.0) == draw(1, 0.0) == draw(1, 1e-6) != draw(2, 0.0)


@pytest.mark.parametrize("seed", [-2, -(2**63), 2**63 - 1])
def test_any_int64_is_a_seed(seed):
    def draw(seed):
        sampler = Sampled(seed=seed)
        return [sampler.choose(LOGITS) for _ in range(100)]

    assert draw(seed) == draw(seed) != draw(seed + 1 if seed < 0 else 0)
    assert draw(-1) != draw(-1), "which is a new one each time"


def test_ids_at_the_minimum_are_never_drawn():
    logits = LOGITS.clone()
    logits[[0, 4]] = torch.finfo(logits.dtype).min
    sampler = Sampled(2.0, seed=0)
    assert not {sampler.choose(logits) for _ in range(500)} & {0, 4} and Greedy().choose(logits) == 2


@pytest.mark.parametrize(("arguments", "code"), [
    ({"temperature": 0.0}, "temperature_invalid"), ({"temperature": float("nan")}, "temperature_invalid"),
    ({"temperature": float("inf")}, "temperature_invalid"), ({"top_p": 0.0}, "top_p_invalid"), ({"top_p": 1.1}, "top_p_invalid"),
    ({"seed": 2**63}, "seed_invalid"), ({"seed": -2**63 - 1}, "seed_invalid")])
def test_values_out_of_range_are_clear_errors(arguments, code):
    with pytest.raises(InputError) as error:
        Sampled(**arguments)
    assert error.value.code == code


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_the_smallest_temperatures_take_the_largest_logit(temperature):
    assert Sampled(temperature).choose(torch.tensor([-1e4, 3.0, 2.999, torch.finfo(torch.float32).min])) == 1
