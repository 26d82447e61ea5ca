"""The rules of an answer: groups whole or not at all, states where they belong; and the one-by-one oracle against a full forward."""

import random

import pytest
import torch

from pixellm.errors import ModelError
from pixellm.inference.answers import Answer, TokenRules
from pixellm.inference.requests import PhotoInput, Request
from pixellm.testing import generate_alone
from tests.inference.models import QUESTIONS, mini_model, photo_inputs

PHOTO = PhotoInput(torch.zeros(3, 4, 4), (4, 4), (4, 4), [1])
STOP, WORD = 99, 5


def write(chosen, group, max_new_tokens, **options) -> tuple[Answer, list[int]]:
    """An answer whose free tokens are `chosen`, and the ids that were fed. The hidden state of the n-th row fed is n."""
    answer, fed = Answer(Request(PHOTO, [1], max_new_tokens, frozenset([STOP]), **options), group), [0]
    while not answer.is_complete:
        ids = answer.accept(chosen.pop(0), torch.tensor([float(len(fed) - 1)]))
        first = len(fed)
        fed += ids
        answer.add_states(torch.arange(first, len(fed), dtype=torch.float32).unsqueeze(1))
    return answer, fed[1:]


@pytest.mark.parametrize("group", [[7], [7, 8], [7, 8, 9, 10]])
@pytest.mark.parametrize("max_new_tokens", range(1, 15))
def test_groups_are_whole_and_their_states_are_those_before_each_token(group, max_new_tokens):
    rng = random.Random(max_new_tokens)
    for _ in range(50):
        chosen = rng.choices((WORD, group[0], STOP), weights=(6, 3, 1), k=40)
        answer, fed = write(list(chosen), group, max_new_tokens)
        starts = [place for place, token in enumerate(answer.token_ids) if token == group[0]]
        assert len(answer.token_ids) <= max_new_tokens and STOP not in answer.token_ids
        assert all(answer.token_ids[start:start + len(group)] == group for start in starts)
        assert answer.token_ids[:len(fed)] == fed and len(answer.token_ids) - len(fed) <= 1, "the last token need not be fed"
        # row n predicts token n of the answer, so the states of a group at `start` are rows start, start + 1, …
        assert [states.flatten().tolist() for states in answer.states] == [
            list(map(float, range(start, start + len(group)))) for start in starts]
        assert answer.finish_reason in ("stop", "length")


def test_reasons():
    group = [7, 8]
    assert write([WORD, STOP], group, 9)[0].finish_reason == "stop"
    assert write([STOP], group, 9)[0].token_ids == []
    assert write([WORD, WORD], group, 2)[0].finish_reason == "length"
    unfit, _ = write([WORD, WORD, 7], group, 3)
    assert (unfit.token_ids, unfit.finish_reason) == ([WORD, WORD], "length"), "a group that does not fit is not begun"
    limited, _ = write([7, WORD, 7], group, 9, max_targets=1)
    assert (limited.token_ids, limited.finish_reason) == ([7, 8, WORD], "max_targets")
    finished, _ = write([WORD, 7, WORD, WORD], group, 9, is_finished=lambda ids: ids[-1] == WORD and len(ids) > 1)
    assert (finished.token_ids, finished.finish_reason) == ([WORD, 7, 8, WORD], "stop")


def test_ids_that_may_not_be_chosen():
    model = mini_model()
    rules, first, *others = TokenRules(model.config), *model.config.codebook_token_ids
    logits = rules.mask_(torch.zeros(2, 60))
    never = [*others, model.config.image_token_id]
    assert sorted((logits[1] < 0).nonzero().flatten().tolist()) == sorted(never)
    assert rules.check(first, 60) == first
    for token in (*never, -1, 60):
        with pytest.raises(ModelError, match=f"chose token {token}"):
            rules.check(token, 60)
    assert (rules.mask_(torch.zeros(10)) == 0).all(), "ids beyond the logits are no error"


@torch.no_grad()
def test_kept_states_are_those_of_a_full_forward(speaking):
    model, processor = speaking
    photo, prompt = photo_inputs(processor)[3], processor.prompt_ids(QUESTIONS[3])
    answer, mask_logits = generate_alone(model, Request(photo, prompt, 40, frozenset([processor.tokenizer.eos_token_id])))
    assert answer.states
    whole = torch.tensor([prompt + answer.token_ids])
    attention_mask = torch.ones_like(whole)
    attention_mask[whole == model.config.image_token_id] = torch.tensor(photo.image_token_mask)
    output = model(photo.pixel_values[None], torch.tensor([photo.resized_size_hw]), torch.tensor([0]), whole, attention_mask)
    states, _ = model.codebook_states(output.hidden_states, whole)
    torch.testing.assert_close(torch.stack(answer.states), states, atol=1e-4, rtol=0)  # 3e-6 seen
    torch.testing.assert_close(mask_logits, output.mask_logits, atol=1e-4, rtol=0)  # 4e-6 seen
    predicted = output.logits[0, len(prompt) - 1:-1].clone()
    never = [*model.config.codebook_token_ids[1:], model.config.image_token_id]
    predicted[:, never] = -torch.inf
    free = [place for place, token in enumerate(answer.token_ids) if token not in never]
    assert predicted.argmax(-1)[free].tolist() == [answer.token_ids[place] for place in free]
