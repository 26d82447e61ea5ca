"""Losses against plain numpy, and the properties that must always hold."""

import numpy as np
import pytest
import torch

from pixellm.model.losses import compute_losses, dice, overlap_weight, refined_bce, text_loss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (5, 7, 7)).astype(np.float32)
    targets = rng.random((5, 7, 7)).astype(np.float32)
    valid = (rng.random((5, 7, 7)) > 0.3).astype(np.float32)
    return logits, targets, valid, np.array([0, 0, 0, 1, 4])


def test_refined_bce_equals_the_papers_sums(masks):
    logits, targets, valid, question = masks
    expected = []
    for k in range(5):
        total = 0.0
        for y in range(7):
            for x in range(7):
                covering = sum(logits[j, y, x] > 0 for j in range(5) if question[j] == question[k])
                p = sigmoid(logits[k, y, x])
                bce = -(targets[k, y, x] * np.log(p) + (1 - targets[k, y, x]) * np.log(1 - p))
                total += (3.0 if covering >= 2 else 1.0) * bce * valid[k, y, x]
        expected.append(total / valid[k].sum())
    found = refined_bce(*(torch.from_numpy(each) for each in masks), alpha=3.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # 2e-7 seen


def test_dice_equals_the_released_formula_over_valid_pixels(masks):
    logits, targets, valid, _ = masks
    p, t = sigmoid(logits) * valid, targets * valid
    expected = 1 - (2 * (p * t).sum((1, 2)) / 1000 + 1e-6) / (p.sum((1, 2)) / 1000 + t.sum((1, 2)) / 1000 + 1e-6)
    found = dice(*(torch.from_numpy(each) for each in masks[:3]))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # 6e-8 seen


def test_ignored_pixels_have_no_gradient(masks):
    logits, targets, valid, question = (torch.from_numpy(each) for each in masks)
    logits.requires_grad_()
    (refined_bce(logits, targets, valid, question, 2.0).sum() + dice(logits, targets, valid).sum()).backward()
    assert (logits.grad[valid == 0] == 0).all() and (logits.grad[valid == 1] != 0).all()


def test_permutation_of_targets_changes_nothing(masks):
    tensors = [torch.from_numpy(each) for each in masks]
    order = torch.tensor([3, 0, 4, 2, 1])
    for loss in (lambda *m: refined_bce(*m, alpha=2.0).sum(), lambda *m: dice(*m[:3]).sum()):
        torch.testing.assert_close(loss(*tensors), loss(*(each[order] for each in tensors)))


def test_overlap_counts_masks_of_the_same_question_only():
    logits = torch.ones(3, 1, 1)
    assert overlap_weight(logits, torch.tensor([0, 0, 1]), 2.0).flatten().tolist() == [2.0, 2.0, 1.0]
    assert overlap_weight(logits, torch.tensor([0, 1, 2]), 2.0).flatten().tolist() == [1.0, 1.0, 1.0]


def test_one_target_is_plain_bce_whatever_alpha_is(masks):
    logits, targets, valid, _ = (torch.from_numpy(each) for each in masks)
    alone = torch.arange(5)  # each the only one of its question, on the same photo or on others
    plain = refined_bce(logits, targets, valid, alone, 1.0)
    assert torch.equal(refined_bce(logits, targets, valid, alone, 7.0), plain)
    assert bool((refined_bce(logits, targets, valid, torch.zeros(5, dtype=torch.int64), 7.0) > plain).all())


def test_refinement_adds_the_released_overlap_term(masks):
    """L_ref = BCE + (alpha - 1) * overlap: linear in alpha."""
    tensors = [torch.from_numpy(each) for each in masks]
    at = {alpha: refined_bce(*tensors, alpha=alpha) for alpha in (1.0, 2.0, 5.0)}
    torch.testing.assert_close(at[5.0] - at[1.0], 4 * (at[2.0] - at[1.0]), atol=1e-5, rtol=0)  # 1.4e-6: worst of 50 seeds


def test_cells_that_are_not_valid_count_for_nothing(masks):
    """Padding of a smaller photo, or an ignored region: any logits and targets there, the same losses."""
    logits, targets, valid, _ = (torch.from_numpy(each) for each in masks)
    other = (torch.where(valid == 0, -9.0, logits), torch.where(valid == 0, 1.0, targets), valid)
    assert torch.equal(refined_bce(*other, torch.arange(5), 2.0), refined_bce(logits, targets, valid, torch.arange(5), 2.0))
    assert torch.equal(dice(*other), dice(logits, targets, valid))


def test_text_loss_counts_answer_tokens_only():
    logits = torch.randn(2, 4, 9)
    labels = torch.tensor([[-100, -100, 3, 4], [-100, 5, -100, -100]])
    sums, counts = text_loss(logits, labels)
    log_probs = logits.log_softmax(-1)
    assert counts.tolist() == [2, 1]
    torch.testing.assert_close(sums, -torch.stack([log_probs[0, 1, 3] + log_probs[0, 2, 4], log_probs[1, 0, 5]]))


def test_no_target_gives_zero_sums_with_a_graph():
    logits = torch.randn(1, 3, 9, requires_grad=True)
    mask_logits = torch.zeros(0, 4, 4, requires_grad=True)
    empty = torch.zeros(0, 4, 4)
    sums = compute_losses(logits, torch.tensor([[-100, 2, 3]]), mask_logits, empty, empty, torch.zeros(0, dtype=torch.int64))
    assert sums.bce.sum() == sums.dice.sum() == 0 and len(sums.bce) == 0
    (sums.text.sum() + sums.bce.sum() + sums.dice.sum()).backward()
    assert mask_logits.grad is not None and logits.grad is not None
