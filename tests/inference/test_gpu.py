"""The engine on a GPU gives what one request alone gives there. Skipped where there is none."""

import copy
import random

import pytest
import torch

from pixellm.inference.config import EngineConfig
from pixellm.inference.int8 import use_int8_weights
from pixellm.inference.requests import Request
from pixellm.inference.segmenter import Segmenter
from pixellm.inference.stepper import Stepper
from tests.inference.models import QUESTIONS, mini_photos, photo_inputs, photos
from tests.inference.stepping import MASK_TOLERANCE, ask, run, some_request

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """Convolutions in float32 use TF32 on a GPU unless they are told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _random_requests(speaking, num_requests: int) -> list[Request]:
    rng, processor = random.Random(0), speaking[1]
    inputs = photo_inputs(processor)
    words = ("red", "the", "green ring", "where is", "circle?", "one", "other")
    questions = [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(num_requests)]
    return [Request(inputs[index % len(inputs)], processor.prompt_ids(question), rng.randint(4, 40))
            for index, question in enumerate(questions)]


@pytest.mark.parametrize("engine", [EngineConfig(), EngineConfig(num_slots=3, max_rows_per_step=20, max_photos_per_step=4,
                                                                 max_masks_per_step=16)], ids=["default", "small"])
def test_float32_answers_are_those_of_one_request_alone(speaking, engine):
    stepper = Stepper(copy.deepcopy(speaking[0]).cuda(), engine)
    asked = [ask(stepper, request) for request in _random_requests(speaking, 32)]
    while not stepper.is_idle:
        stepper.step()
    worst = max(each.check(may_be_cut=False) for each in asked)
    print(f"largest difference of a mask logit: {worst:.2g}")
    assert any(len(each.expected.mask_logits) for each in asked) and worst < MASK_TOLERANCE


def test_grouped_queries_and_odd_photos(model):
    """The mini model has two query heads for each key head."""
    stepper = Stepper(copy.deepcopy(model).cuda(), EngineConfig(num_slots=4, slot_tokens=64))
    asked = [ask(stepper, some_request(photo, 9, question)) for photo in mini_photos(model, 5) for question in ((5, 6), (8,) * 20)]
    run(stepper)
    assert max(each.check(may_be_cut=False) for each in asked) < MASK_TOLERANCE


@pytest.mark.parametrize("int8", [False, True])
def test_bfloat16_and_eight_bits_answer(speaking, int8):
    model = copy.deepcopy(speaking[0]).to(torch.bfloat16)
    if int8:
        use_int8_weights(model)
    answers = Segmenter(model.cuda(), speaking[1]).segment(photos(), QUESTIONS, max_new_tokens=40)
    assert all(answer.num_tokens for answer in answers) and any(answer.targets for answer in answers)
