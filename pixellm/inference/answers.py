"""The rules of an answer: how tokens are taken one after the other, which may not be, and when it ends. Knows no batch and no cache.

Letters: V vocabulary, D language-model width, L*N codebook tokens of a group.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pixellm.errors import ModelError
from pixellm.inference.requests import FinishReason, Request
from pixellm.model.configuration_pixellm import PixelLMConfig


@dataclass(eq=False)
class Answer:
    """An answer as it grows: `token_ids` without the stop token, codebook groups whole; `states` one (L*N, D) for each group.

    The state of a codebook token is the hidden state that predicts it. `finish_reason` is set when no more tokens are taken; the answer
    is complete when its last group has its states as well.
    """

    request: Request
    codebook_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    group: list[Tensor] = field(default_factory=list)  # the states seen so far of the group that is being fed

    @property
    def is_complete(self) -> bool:
        return self.finish_reason is not None and not self.group

    def accept(self, token_id: int, state: Tensor) -> list[int]:
        """Takes the token that `state` (D,) predicts. Returns the ids to feed next: a whole group where one opens, none at the end.

        After them, `add_states` must get their hidden states before the next token is accepted.
        """
        opens_group, num_left = token_id == self.codebook_ids[0], self.request.max_new_tokens - len(self.token_ids)
        taken = self.codebook_ids if opens_group else [token_id]
        if token_id in self.request.stop_token_ids:
            self.finish_reason = "stop"
        elif len(taken) > num_left:
            self.finish_reason = "length"
        elif opens_group and len(self.states) == self.request.max_targets:
            self.finish_reason = "max_targets"
        if self.finish_reason:
            return []
        self.token_ids += taken
        if len(taken) == num_left:
            self.finish_reason = "length"
        if opens_group:
            self._add_group_states(state.unsqueeze(0))
        elif self.request.is_finished and self.request.is_finished(self.token_ids):
            self.finish_reason = "stop"
        return taken[:-1] if self.finish_reason else list(taken)

    def add_states(self, hidden_states: Tensor) -> None:
        """Hidden states (n, D) of ids that `accept` returned, in order: where a group is open, they predict its other tokens."""
        if self.group:
            self._add_group_states(hidden_states[:len(self.codebook_ids) - len(self.group)])

    def _add_group_states(self, states: Tensor) -> None:
        self.group += states.unbind(0)
        if len(self.group) == len(self.codebook_ids):
            self.states.append(torch.stack(self.group))
            self.group = []


class TokenRules:
    """Which ids may be chosen: of the codebook only the first, which opens a group, and never the image placeholder."""

    def __init__(self, config: PixelLMConfig):
        self._never = [*config.codebook_token_ids[1:], config.image_token_id]

    def mask_(self, logits: Tensor) -> Tensor:
        """Sets the logits (…, V) of ids that may not be chosen to their dtype's minimum, in place."""
        for token_id in self._never:
            if token_id < logits.shape[-1]:
                logits[..., token_id] = torch.finfo(logits.dtype).min
        return logits

    def check(self, token_id: int, vocabulary_size: int) -> int:
        """Returns `token_id`. Raises ModelError when a sampler chose an id that cannot be fed."""
        if not 0 <= token_id < vocabulary_size or token_id in self._never:
            raise ModelError(f"the sampler chose token {token_id}; it must be in [0, {vocabulary_size}) and none of {self._never}")
        return token_id
