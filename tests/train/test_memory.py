"""The estimate of a step's memory: it counts what the step allocates, follows the settings, and is near what the system sees."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from pixellm.errors import ConfigError
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.presets import preset_config
from pixellm.train.allocations import count_step
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.memory import BatchShape, build_batch, estimate_memory
from pixellm.train.parameters import select_parameters
from tests.conftest import ROOT
from tests.train.examples import make_config

SHAPE = BatchShape(photos=2, conversations_per_photo=2, text_tokens=24, targets=2)
TINY = preset_config("tiny")


def activations(**changes) -> dict[str, int]:
    """By part; fused attention as on a GPU."""
    parts = estimate_memory(TINY, make_config(**({"zero_stage": 0, "use_gpu": True} | changes)), SHAPE).parts
    return {name.removeprefix("activations, "): num_bytes for name, num_bytes in parts.items() if name.startswith("activations")}


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 2}, "frozen": ["vision_tower"]}, {"mask_loss_resolution": "photo"},
                                     {"loss_weights": {"bce": 0, "dice": 0}}], ids=["all", "lora", "photo", "text"])
def test_shapes_alone_count_what_numbers_allocate(changes):
    """The same step on the CPU, with numbers, makes the same tensors: the way over `meta` loses none."""
    config, found = make_config(**changes), []
    for device in ("meta", "cpu"):
        torch.manual_seed(0)
        with torch.device(device):
            model = PixelLMForConditionalGeneration(TINY).train()
            select_parameters(model, config)
        batch = build_batch(TINY, SHAPE, device, config.mask_loss_resolution == "photo")
        losses = partial(forward_losses, model, batch, config)
        found.append(count_step(model, lambda losses=losses: weighted_loss(losses(), config.loss_weights, 1, 1), "plain"))
    shapes, numbers = found
    assert shapes.peak.total() > 1_000_000 and shapes.num_gradient_bytes == numbers.num_gradient_bytes > 0
    assert shapes.peak.total() == pytest.approx(numbers.peak.total(), rel=0.02)  # measured 0.000 to 0.004


def test_activations_follow_the_settings():
    plain, checkpointed, frozen, text = (activations(**changes) for changes in (
        {}, {"gradient_checkpointing": True}, {"frozen": ["vision_tower"]}, {"loss_weights": {"bce": 0, "dice": 0}}))
    assert checkpointed["language_model"] < plain["language_model"] / 3 and checkpointed["vision_tower"] < plain["vision_tower"] / 3
    assert frozen.get("vision_tower", 0) < plain["vision_tower"] / 3 and text.get("mask_head", 0) == 0
    assert sum(activations(precision="bf16").values()) < 0.7 * sum(plain.values())


def test_what_is_kept_follows_the_stage():
    kept = {}
    for stage in (0, 1, 2, 3):
        config = make_config(zero_stage=stage, num_workers=4, precision="bf16")
        kept[stage] = estimate_memory(TINY, config, SHAPE)
    numbers, trained = kept[0].num_parameters, kept[0].num_trained
    weights = [kept[stage].parts["weights"] for stage in (0, 1, 2, 3)]
    assert weights == [numbers * 2] * 4, "at stage 3 every parameter of `tiny` is below the size that DeepSpeed shares out"
    assert [kept[stage].parts["optimizer states"] for stage in (0, 1, 2, 3)] == [trained * 12, *[int(trained / 4) * 12] * 3]
    assert [kept[stage].parts["gradients"] for stage in (1, 2, 3)] == [trained * 4, *[int(trained / 4) * 4] * 2]
    offloaded = estimate_memory(TINY, make_config(zero_stage=3, num_workers=4, offload=["optimizer", "parameters"]), SHAPE)
    assert offloaded.parts["weights"] == offloaded.parts["optimizer states"] == 0 and offloaded.host["optimizer states"] > 0


def test_a_conversation_beyond_the_positions():
    with pytest.raises(ConfigError, match=r"600 tokens and 2 targets takes 644 with its photo, the language model has 512 positions"):
        estimate_memory(TINY, make_config(), BatchShape(1, 1, text_tokens=600, targets=2))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", [
    "architecture=tiny photos=8", "architecture=tiny photos=16 precision=bf16 gradient_checkpointing=true", "architecture=150m photos=2"])
def test_the_estimate_is_what_the_system_sees(case):
    """In a process of its own, so that nothing but the steps is in its peak. docs/train.md has the figures."""
    done = subprocess.run([sys.executable, "-m", "pixellm.train.memory_check", *case.split()], cwd=ROOT, check=True, capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ratio = json.loads(done.stdout.splitlines()[-1])["estimated_over_measured"]
    assert 0.85 < ratio < 1.15  # measured 0.99, 0.90, 1.04
