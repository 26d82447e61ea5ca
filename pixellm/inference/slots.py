"""The key/value cache of all running answers, and the attention over it: one packed forward for rows of many answers.

A step packs its rows as (1, T, D). Everything in a transformers model but attention treats rows alone; attention comes here through
transformers' AttentionInterface, writes the rows' keys and values into their slots and lets each row see what its slot holds before it.
Letters: T rows of a step, S slots, H query heads, G key/value heads, E head width, C rows that a slot can hold.
"""

import copy
import itertools
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pixellm.errors import ConfigError, ModelError
from pixellm.inference.cpu import attend, is_attended_by_products, padded_num_rows

ModuleType = TypeVar("ModuleType", bound=nn.Module)

ATTENTION_NAME = "pixellm_slots"
# What some models hand to their attention and this one does not know; None means that they do not use it.
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True)
class Piece:
    """`num_rows` rows that go into slot `slot`, which holds `num_past` rows already."""

    slot: int
    num_past: int
    num_rows: int


@dataclass(frozen=True)
class _Block:
    """Pieces of equal length in neighbouring slots: they attend together, over the first `num_keys` rows of each slot.

    `mask` (slots, 1, num_rows * H/G, num_keys) is added to the scores: 0 or -inf; None where each row sees every key, or `is_causal`.
    """

    rows: slice
    slots: slice
    num_rows: int
    num_keys: int
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class SlotStep:
    """How the rows of one step lie in the cache: `slot_of_row`, `place_of_row` (T,) int64. Rows after them are padding."""

    keys: Tensor
    values: Tensor
    slot_of_row: Tensor
    place_of_row: Tensor
    blocks: list[_Block]


class SlotCache:
    """Keys and values (layers, S, G, C, E) of S slots, `num_slots` of them or as many as `max_bytes` hold, and the language model that
    fills them.

    The model is a view of `base_model` that shares its weights; the given one keeps its own attention. Raises ModelError for a model
    whose attention needs what this one has not (a sliding window below C, logit soft-capping, attention sinks, layers without keys),
    ConfigError when not even one slot fits into `max_bytes`, or all of them not into what the device has left.
    """

    def __init__(self, base_model: PreTrainedModel, num_slots: int, capacity: int, max_bytes: float = math.inf):
        self.capacity = capacity
        self._model = _with_slot_attention(base_model)
        probe = _Probe(self._model, capacity)
        num_layers = base_model.config.num_hidden_layers
        if sorted(probe.layers) != list(range(num_layers)) or len(probe.shapes) != 1:
            raise ModelError(f"the engine needs keys and values of one shape in all {num_layers} layers, found the shapes "
                             f"{sorted(probe.shapes)} (query heads, key heads, widths) in layers {sorted(probe.layers)}")
        num_heads, num_key_heads, key_width, value_width = probe.shapes.pop()
        self._heads_per_key_head = num_heads // num_key_heads
        weight = next(base_model.parameters())
        bytes_per_slot = num_layers * num_key_heads * (key_width + value_width) * weight.element_size() * capacity
        self.num_slots = _count_slots(num_slots, bytes_per_slot, max_bytes, _free_bytes(weight.device))
        self.keys = _untouched_zeros((num_layers, self.num_slots, num_key_heads, capacity, key_width), weight)
        self.values = _untouched_zeros((num_layers, self.num_slots, num_key_heads, capacity, value_width), weight)

    @property
    def bytes_per_row(self) -> int:
        """Keys and values of one token over all layers."""
        return sum(each[:, 0, :, 0].nbytes for each in (self.keys, self.values))

    def forward(self, embeds: Tensor, positions: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """Rows (T, D) with position ids (T,), piece after piece by rising slot -> final hidden states (T, D)."""
        num_rows = len(embeds)
        num_unused = (padded_num_rows(num_rows) if embeds.device.type == "cpu" else num_rows) - num_rows
        embeds, positions = F.pad(embeds, (0, 0, 0, num_unused)), F.pad(positions, (0, num_unused))
        return self._model(inputs_embeds=embeds.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False,
                           slot_step=self._plan(pieces)).last_hidden_state[0, :num_rows]

    def read(self, slot: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """Copies of the first rows of a slot: keys and values (layers, G, num_rows, E)."""
        return self.keys[:, slot, :, :num_rows].clone(), self.values[:, slot, :, :num_rows].clone()

    def write(self, slot: int, keys: Tensor, values: Tensor) -> None:
        """Fills the first rows of a slot with what `read` gave."""
        self.keys[:, slot, :, :keys.shape[2]] = keys
        self.values[:, slot, :, :values.shape[2]] = values

    def clear(self, slot: int, num_rows: int) -> None:
        """Zeroes the first rows: what is not finite would reach the slot's next answer, since 0 x NaN is NaN."""
        self.keys[:, slot, :, :num_rows] = 0
        self.values[:, slot, :, :num_rows] = 0

    def _plan(self, pieces: Sequence[Piece]) -> SlotStep:
        device = self.keys.device
        slot_of_row = torch.tensor([piece.slot for piece in pieces for _ in range(piece.num_rows)], device=device)
        place_of_row = torch.tensor([place for piece in pieces for place in range(piece.num_past, piece.num_past + piece.num_rows)],
                                    device=device)
        blocks, start = [], 0
        # neighbours of equal length: slot minus place in the list stays the same along a run
        for (_, num_rows), run in itertools.groupby(enumerate(pieces), lambda placed: (placed[1].slot - placed[0], placed[1].num_rows)):
            block = [piece for _, piece in run]
            past = torch.tensor([piece.num_past for piece in block])
            num_keys = int(past.max()) + num_rows
            is_causal = num_keys == num_rows > 1 and self._heads_per_key_head == 1 and not is_attended_by_products(self.keys)
            mask = None
            if not is_causal and (num_rows > 1 or bool((past != past[0]).any())):
                last_seen = past[:, None] + torch.arange(num_rows)
                is_hidden = (torch.arange(num_keys) > last_seen[:, :, None]).repeat(1, self._heads_per_key_head, 1).unsqueeze(1)
                mask = torch.zeros(is_hidden.shape, dtype=self.keys.dtype).masked_fill_(is_hidden, -torch.inf).to(device)
            stop = start + num_rows * len(block)
            blocks.append(_Block(slice(start, stop), slice(block[0].slot, block[-1].slot + 1), num_rows, num_keys, mask, is_causal))
            start = stop
        return SlotStep(self.keys, self.values, slot_of_row, place_of_row, blocks)


def slot_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                   scaling: float | None = None, slot_step: "SlotStep | _Probe | None" = None, **kwargs) -> tuple[Tensor, None]:
    """An attention function of transformers' interface: query (1, H, T, E), key and value (1, G, T, E) -> (1, T, H, E)."""
    if isinstance(slot_step, _Probe):
        return slot_step.see(module, query, key, value, attention_mask, kwargs), None
    assert slot_step is not None
    keys, values = slot_step.keys[module.layer_idx], slot_step.values[module.layer_idx]
    num_rows = len(slot_step.slot_of_row)
    keys[slot_step.slot_of_row, :, slot_step.place_of_row] = key[0, :, :num_rows].transpose(0, 1)
    values[slot_step.slot_of_row, :, slot_step.place_of_row] = value[0, :, :num_rows].transpose(0, 1)
    num_heads, num_key_heads = query.shape[1], keys.shape[1]
    output = query.new_zeros(query.shape[2], num_heads, values.shape[-1])
    for block in slot_step.blocks:
        # Query heads that share a key head become further rows of it, so the keys are never repeated.
        queries = query[0, :, block.rows].unflatten(1, (-1, block.num_rows)).transpose(0, 1)
        attended = attend(queries.reshape(len(queries), num_key_heads, -1, query.shape[-1]), keys[block.slots, :, :block.num_keys],
                          values[block.slots, :, :block.num_keys], block.mask, block.is_causal, scaling)
        output[block.rows] = attended.reshape(len(queries), num_heads, block.num_rows, -1).transpose(1, 2).flatten(0, 1)
    return output.unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, slot_attention)


class _Probe:
    """Runs one row through a model and notes what its attention layers ask for."""

    def __init__(self, base_model: PreTrainedModel, capacity: int):
        self.capacity = capacity
        self.layers: list[int] = []
        self.shapes: set[tuple[int, int, int, int]] = set()  # H, G, E of keys, E of values
        weight = next(base_model.parameters())
        with torch.inference_mode():
            base_model(inputs_embeds=weight.new_zeros(1, 1, base_model.config.hidden_size), use_cache=False, slot_step=self,
                       position_ids=torch.zeros(1, 1, dtype=torch.int64, device=weight.device))

    def see(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, asked: dict) -> Tensor:
        window = asked.get("sliding_window")
        unknown = [name for name in UNSUPPORTED if asked.get(name) is not None]
        if window is not None and window < self.capacity:
            unknown.append(f"a sliding window of {window} below the slots' capacity of {self.capacity}")
        if attention_mask is not None:
            unknown.append("a mask of its own")
        if unknown:
            raise ModelError(f"layer {module.layer_idx} needs {', '.join(unknown)}, which the engine's attention has not")
        self.layers.append(module.layer_idx)
        self.shapes.add((query.shape[1], key.shape[1], key.shape[3], value.shape[3]))
        return value.new_zeros(1, 1, query.shape[1], value.shape[3])


def _count_slots(num_slots: int, bytes_per_slot: int, max_bytes: float, free_bytes: float) -> int:
    """At most `num_slots`. Raises ConfigError."""
    num_fitting = int(min(num_slots, max_bytes / bytes_per_slot))
    if not num_fitting:
        raise ConfigError(f"the keys and values of one slot take {bytes_per_slot / 1e6:.4g} MB, more than kv_cache_mb "
                          f"({max_bytes / 1e6:.4g}); raise it or lower slot_tokens")
    if num_fitting * bytes_per_slot > free_bytes:
        raise ConfigError(f"the keys and values of {num_fitting} slots take {num_fitting * bytes_per_slot / 1e6:.4g} MB, the device has "
                          f"{free_bytes / 1e6:.4g} MB left beside the model; lower kv_cache_mb or num_slots")
    return num_fitting


def _free_bytes(device: torch.device) -> float:
    """Not known where memory is only taken by what is written (`_untouched_zeros`)."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _untouched_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the dtype and device of `like`. On a CPU, rows that no answer reaches take no memory.

    torch writes its zeros, and NumPy asks for huge pages, a few rows of which make all of them resident.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    memory = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def view_of(module: ModuleType) -> ModuleType:
    """A copy of the modules and configurations around the same weights: it can be changed without changing what was given."""
    shared = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def _with_slot_attention(base_model: PreTrainedModel) -> PreTrainedModel:
    """A view whose configuration names our attention. Raises ModelError."""
    rope = getattr(base_model.config, "rope_parameters", None) or {}
    if not getattr(base_model, "_supports_attention_backend", False):
        raise ModelError(f"{type(base_model).__name__} does not take its attention from transformers' interface; the engine cannot run it")
    if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
        raise ModelError(f"rotary positions of type {rope['rope_type']} depend on the longest prompt of a batch; answers would depend on "
                         "their neighbours")
    view = view_of(base_model)
    view.config._attn_implementation = ATTENTION_NAME
    return view
