"""A tiny model, micro-batches and one-process DeepSpeed engines for the tests of training."""

import copy
import functools
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from pixellm.data.collate import MicroBatch
from pixellm.data.schema import TASKS
from pixellm.data.sources import shapes_questions
from pixellm.model.presets import build_tiny
from pixellm.model.processing_pixellm import MaskResolution, TrainingConversation
from pixellm.train.config import TrainConfig
from pixellm.train.deepspeed import Engine
from pixellm.train.parameters import select_parameters

NUM_PHOTOS = 4


def make_config(**changes) -> TrainConfig:
    """float32, no clipping, no warm-up: what changes the numbers is the test's own."""
    values = {"run": "test", "storage": "runs", "data": ["shards"], "steps": 100, "precision": "fp32", "clip_norm": 0, "warmup_steps": 0,
              "learning_rates": dict.fromkeys(("vision_tower", "projector", "language_model", "codebook", "mask_head"), 1e-3)}
    return TrainConfig.model_validate(values | changes)


@functools.cache
def base_model():
    """Model and processor of the smallest size; do not change them."""
    return build_tiny(shapes_questions.all_texts())


def build_engine(config: TrainConfig) -> Engine:
    """An engine around a fresh copy of the base model. Needs the process group."""
    model = copy.deepcopy(base_model()[0])
    return Engine(model.train(), select_parameters(model, config), config)


def make_batch(photos: list[int], without_masks: bool = False, mask_resolution: MaskResolution = "decoder") -> MicroBatch:
    """Photos are numbered; each has its own number of targets and length of answers, so that means over parts are not the mean of all."""
    images, conversations = [], []
    for place, index in enumerate(photos):
        rng = np.random.default_rng(index)
        images.append(Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)))
        mask = np.zeros((96, 96), dtype=bool)
        mask[10:40, 20:50 + 5 * index] = True
        num_targets = 0 if without_masks else index
        answer = "The red circle {seg} " * num_targets + "and nothing" * (index + 1)
        conversations.append(replace(TrainingConversation(0, f"Where is thing {index}?", answer, [mask] * num_targets), photo_index=place))
    tensors = base_model()[1].collate_packed(images, conversations, mask_resolution) | {"task_index": torch.tensor(photos) % len(TASKS)}
    return MicroBatch(tensors, [(0, f"row-{index}") for index in photos])


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Over all tensors of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
