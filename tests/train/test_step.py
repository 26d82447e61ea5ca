"""One optimiser step: what the gradient is divided by, which steps are left out, and that a saved state goes on at any stage."""

import math
from dataclasses import replace

import pytest

from pixellm.train.guard import StepGuard
from pixellm.train.step import learning_rate_factor, optimiser_step
from tests.train.examples import NUM_PHOTOS, build_engine, largest_difference, make_batch, make_config

PHOTOS = list(range(NUM_PHOTOS))


def gradients(config, batches):
    """After the first step Adam's first moment is (1 - beta1) times the gradient."""
    engine = build_engine(config)
    interval = optimiser_step(engine, batches, config, factor=1.0)
    state = engine.gather_state()
    assert state.num_updates == 1
    return {name: value / (1 - config.betas[0]) for name, value in state.moments["exp_avg"].items()}, interval


def test_cutting_the_batch_leaves_the_gradient(process_group):
    whole, one = gradients(make_config(), [make_batch(PHOTOS)])
    halves, two = gradients(make_config(accumulation=2), [make_batch(PHOTOS[:2]), make_batch(PHOTOS[2:])])
    assert (one.num_answer_tokens, one.num_masks, one.num_photos) == (two.num_answer_tokens, two.num_masks, NUM_PHOTOS)
    assert max(float(value.abs().max()) for value in whole.values()) > 0.1
    assert largest_difference(whole, halves) < 2e-5  # measured 6e-7: sums in another order; a mean of means differs by 0.36
    assert one.losses() == pytest.approx(two.losses(), rel=1e-5)
    assert one.gradient_norm == pytest.approx(two.gradient_norm, rel=1e-5)


def test_gradient_reaches_every_parameter_that_is_promised(process_group):
    found, _ = gradients(make_config(), [make_batch(PHOTOS)])
    assert not [name for name, value in found.items() if not bool(value.any())]


def test_a_batch_without_masks_trains_the_text_only(process_group):
    found, interval = gradients(make_config(), [make_batch(PHOTOS, without_masks=True)])
    assert interval.num_masks == 0 and interval.losses()["bce"] == 0 and interval.losses()["text"] > 0
    assert not [name for name, value in found.items() if name.startswith("mask_head.") and bool(value.any())]
    assert bool(found["language_model.lm_head.weight"].any())


def test_without_mask_losses_only_the_text_is_trained(process_group):
    batch = [make_batch(PHOTOS)]
    whole, both = gradients(make_config(), batch)
    found, interval = gradients(make_config(loss_weights={"bce": 0, "dice": 0}), batch)
    assert (interval.bce, interval.dice) == (0, 0) and interval.text == pytest.approx(both.text, rel=1e-6)
    assert not [name for name in found if name.startswith("mask_head.")] and whole.keys() - found.keys()
    rows = "language_model.lm_head.weight"  # the masks do not reach them: measured 0
    assert largest_difference({rows: found[rows]}, {rows: whole[rows]}) < 1e-6


@pytest.mark.parametrize(("saved_stage", "loaded_stage", "precision"), [(2, 0, "fp32"), (0, 2, "fp32"), (1, 2, "bf16")])
def test_a_state_goes_on_at_another_stage(process_group, saved_stage, loaded_stage, precision):
    batches = [make_batch(PHOTOS[1:3])]
    config = make_config(zero_stage=saved_stage, precision=precision)
    engine = build_engine(config)
    for _ in range(2):
        optimiser_step(engine, batches, config, factor=1.0)
    state = engine.gather_state()
    expected = [optimiser_step(engine, batches, config, factor=1.0).text for _ in range(3)]

    config = make_config(zero_stage=loaded_stage, precision=precision)
    resumed = build_engine(config)
    optimiser_step(resumed, batches, config, factor=0.0)
    resumed.load_state(state)
    assert resumed.gather_state().num_updates == state.num_updates == 2
    assert [optimiser_step(resumed, batches, config, factor=1.0).text for _ in range(3)] == pytest.approx(expected, rel=1e-6)


def spoiled(batch):
    """The batch with pixels that are no numbers."""
    return replace(batch, tensors=batch.tensors | {"pixel_mean": batch.tensors["pixel_mean"] * math.nan})


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16")])
def test_a_step_that_is_no_number_changes_nothing(process_group, stage, precision):
    """Losses of the steps around it equal those of a run that never had it, also where the bad micro-batch comes first."""
    config = make_config(zero_stage=stage, precision=precision, accumulation=2)
    good, bad = [make_batch(PHOTOS[1:2]), make_batch(PHOTOS[2:3])], spoiled(make_batch(PHOTOS[3:]))
    engine, guard = build_engine(config), StepGuard(config.failures)
    expected = [optimiser_step(engine, good, config, factor=1.0, guard=guard).text for _ in range(3)]

    engine = build_engine(config)
    found = []
    for batches in (good, [bad, good[0]], good, [good[1], bad], good):
        taken = optimiser_step(engine, batches, config, factor=1.0, guard=guard)
        if batches is good:
            assert not taken.num_skipped and taken.gradient_norm > 0
            found.append(taken.text)
        else:
            assert (taken.num_skipped, taken.gradient_norm) == (1, 0.0) and math.isnan(taken.text)
    assert found == expected and engine.gather_state().num_updates == 3


def test_a_step_that_the_guard_refuses_changes_nothing(process_group):
    config = make_config(failures={"loss_limit": 1.5})
    batches = [make_batch(PHOTOS)]
    engine = build_engine(config)
    loss = optimiser_step(engine, batches, config, factor=1.0).total(config.loss_weights.model_dump())
    before = engine.gather_state()
    strict = StepGuard(config.failures, mean_loss=loss / 2, num_losses=100)
    assert optimiser_step(engine, batches, config, factor=1.0, guard=strict).num_skipped == 1
    after = engine.gather_state()
    assert largest_difference(before.parameters, after.parameters) == 0 and after.num_updates == 1


def test_a_repeated_micro_batch_counts_nothing(process_group):
    whole, one = gradients(make_config(), [make_batch(PHOTOS)])
    config = make_config(accumulation=2)
    engine = build_engine(config)
    taken = optimiser_step(engine, [make_batch(PHOTOS)] * 2, config, factor=1.0, num_repeated=1, asks=True)
    found = {name: value / (1 - config.betas[0]) for name, value in engine.gather_state().moments["exp_avg"].items()}
    assert largest_difference(whole, found) < 2e-5 and max(float(value.abs().max()) for value in whole.values()) > 0.1
    assert (taken.num_photos, taken.num_asking, one.num_asking) == (NUM_PHOTOS, 1, 0) and taken.text == pytest.approx(one.text, rel=1e-6)


def test_learning_rate_rises_then_falls():
    config = make_config(warmup_steps=4, steps=104)
    factors = [learning_rate_factor(step, config) for step in range(104)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.5) and 0 < factors[-1] < 0.02
    cosine = make_config(warmup_steps=4, steps=104, decay="cosine")
    assert learning_rate_factor(29, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
