"""The engine: prompts and photo features in, answer ids and codebook states out. It knows tokens and states, no text, no Ray, no HTTP.

A batch of prompts is decoded together with a KV cache. The first token of a codebook group is predicted, the rest is forced, so a group is
never broken; the state that predicts each codebook token is kept as it passes.
Letters: Q prompts, T tokens, D language-model width, L*N codebook tokens of a group, K targets of one answer.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from pixellm.errors import ModelError
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration

FinishReason = Literal["stop", "length"]


@dataclass
class GeneratedAnswer:
    """`token_ids` without the end token, codebook groups whole; `states` K x (L*N, D), the states that predicted each group."""

    token_ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    group: list[Tensor] = field(default_factory=list)  # states of the group being decoded

    def accept(self, token_id: int, state: Tensor, codebook_ids: list[int], eos_id: int, max_new_tokens: int) -> int:
        """Takes the token that `state` (D,) predicts and returns the one that is fed next; sets `finish_reason` at the end."""
        if self.group:
            token_id = codebook_ids[len(self.group)]
        elif token_id == eos_id:
            self.finish_reason = "stop"
            return eos_id
        if self.group or token_id == codebook_ids[0]:
            if not self.group and len(self.token_ids) + len(codebook_ids) > max_new_tokens:
                self.finish_reason = "length"
                return eos_id
            self.group.append(state)
            if len(self.group) == len(codebook_ids):
                self.states.append(torch.stack(self.group))
                self.group = []
        self.token_ids.append(token_id)
        if len(self.token_ids) >= max_new_tokens:
            self.finish_reason = "length"
        return token_id


@torch.inference_mode()
def generate(model: PixelLMForConditionalGeneration, input_ids: Tensor, attention_mask: Tensor, image_embeds: Tensor, eos_id: int,
             max_new_tokens: int) -> list[GeneratedAnswer]:
    """Greedy answers to Q prompts.

    input_ids, attention_mask: (Q, T) int64, padded left; the mask is 0 at padding and at image tokens that hold only padding.
    image_embeds: (Q, I, D), of each prompt's photo. Raises ModelError when prompt and answer do not fit the model's positions.
    """
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    if limit and input_ids.shape[1] + max_new_tokens > limit:
        raise ModelError(f"a prompt of {input_ids.shape[1]} tokens and {max_new_tokens} new ones exceed the model's {limit} positions")
    codebook_ids = list(model.config.codebook_token_ids)
    never_sampled = torch.tensor([*codebook_ids[1:], model.config.image_token_id], device=input_ids.device)
    answers = [GeneratedAnswer() for _ in input_ids]
    is_padding = (input_ids != model.config.image_token_id) & (attention_mask == 0)
    positions = (torch.arange(input_ids.shape[1], device=input_ids.device) - is_padding.sum(1, keepdim=True)).clamp(min=0)
    inputs_embeds = model.embed_tokens(input_ids, image_embeds)
    cache = DynamicCache(config=model.config.text_config)
    while True:
        hidden = model.language_model.base_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=positions,
                                                 past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        logits = model.token_logits(hidden)
        allowed = never_sampled[never_sampled < logits.shape[-1]]
        predicted = logits.index_fill(-1, allowed, torch.finfo(logits.dtype).min).argmax(-1).tolist()
        fed = [eos_id if answer.finish_reason else answer.accept(token, state, codebook_ids, eos_id, max_new_tokens)
               for answer, token, state in zip(answers, predicted, hidden, strict=True)]
        if all(answer.finish_reason for answer in answers):
            return answers
        positions = positions[:, -1:] + 1
        attention_mask = torch.cat((attention_mask, torch.ones_like(attention_mask[:, :1])), 1)
        inputs_embeds = model.embed_tokens(torch.tensor(fed, device=input_ids.device).unsqueeze(1), None)
