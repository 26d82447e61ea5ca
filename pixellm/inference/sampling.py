"""How the next token is chosen from logits."""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from pixellm.errors import InputError
from pixellm.inference.config import ANY_SEED


class Sampler(Protocol):
    """Chooses from `logits` (V,); ids that may not be chosen are at the dtype's minimum. What it raises ends its own request only."""

    def choose(self, logits: Tensor) -> int: ...


class Greedy:
    """The largest logit, the first of equal ones. The engine takes all greedy rows of a step at once."""

    def choose(self, logits: Tensor) -> int:
        return int(logits.argmax())


class Forced:
    """Gives `ids` in turn, whatever the logits say, so that an answer is fed instead of made (teacher forcing)."""

    def __init__(self, ids: Iterable[int]):
        self._ids = iter(ids)

    def choose(self, logits: Tensor) -> int:
        return next(self._ids)


class Sampled:
    """Draws from softmax(logits / temperature), restricted to the fewest most likely tokens whose probabilities reach `top_p`.

    The random state is its own, so in float32 the same seed gives the same answer in any batch; in bfloat16 near ties may fall otherwise.
    Raises InputError for values out of range.
    """

    def __init__(self, temperature: float = 1.0, top_p: float = 1.0, seed: int = 0):
        if not 0 < temperature < math.inf:
            raise InputError("temperature_invalid", f"temperature is {temperature}, expected a finite number above 0; "
                             "leave it out for greedy answers")
        if not 0 < top_p <= 1:
            raise InputError("top_p_invalid", f"top_p is {top_p}, expected more than 0 and at most 1")
        if not -2**63 <= seed < 2**63:
            raise InputError("seed_invalid", f"seed is {seed}, expected an int64, from -2**63 to 2**63 - 1; leave it out for 0")
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self._generator = torch.Generator()
        if seed == ANY_SEED:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """Inverts the cumulative distribution in the order of the ids: rounding cannot reorder it, as it could a sorted one."""
        logits = logits.double().cpu()
        probs = ((logits - logits.max()) / self.temperature).softmax(-1)  # the largest first: a tiny temperature makes infinities
        if self.top_p < 1:
            ordered, ids = probs.sort(descending=True, stable=True)
            probs = probs.index_fill(0, ids[ordered.cumsum(0) - ordered >= self.top_p], 0)
        cumulative = probs.cumsum(0)
        drawn = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative[-1]
        return int(torch.searchsorted(cumulative, drawn, right=True))
