"""The same answer, always: whatever joins and leaves the batch, each request gets what it gets alone (`generate_alone`)."""

import copy
import random
import time
from dataclasses import replace

import pytest
import torch

from pixellm.inference.config import EngineConfig
from pixellm.inference.requests import EndEvent, MaskEvent, Request
from pixellm.inference.sampling import Sampled
from pixellm.inference.stepper import Stepper
from pixellm.testing import generate_alone
from tests.inference.models import MINI_VOCABULARY, WatchedGreedy, mini_model, mini_photos, photo_inputs
from tests.inference.stepping import MASK_TOLERANCE, Asked, Expected, Scripted, again, ask, assert_empty, run, some_request

BFLOAT16_MARGIN = 0.1  # 0.047 is the widest lead at which one of 128 such answers parted (84 did; the median lead is 0.17)
NUM_REQUESTS = 200
NUM_INTERLEAVINGS = 1000


def random_request(rng: random.Random, photos) -> Request:
    ids = [rng.randrange(1, MINI_VOCABULARY) for _ in range(rng.choice((1, 3, 20)))]
    return Request(
        rng.choice(photos), [3, 4][:rng.randrange(3)] + [MINI_VOCABULARY] * 4 + ids, max_new_tokens=rng.choice((1, 2, 4, 5, 9, 25)),
        stop_token_ids=frozenset(rng.sample(range(MINI_VOCABULARY), rng.choice((0, 1, 4)))), max_targets=rng.choice((None, None, 0, 1, 2)),
        sampler=WatchedGreedy() if rng.random() < 0.6 else Sampled(rng.choice((0.5, 1.0)), rng.choice((0.9, 1.0)), rng.randrange(1000)),
        client=rng.choice("abc"))


@pytest.fixture(scope="module")
def pool(model):
    rng, photos, pool = random.Random(0), mini_photos(model, 7), []
    for number in range(NUM_REQUESTS):
        request = random_request(rng, photos)
        answer, mask_logits = generate_alone(model, request)
        if number % 10 == 0 and answer.token_ids:  # what would be its first token ends it: an empty answer
            request = again(request, stop_token_ids=frozenset(answer.token_ids[:1]))
            answer, mask_logits = generate_alone(model, request)
        leads = getattr(request.sampler, "leads", [])
        if min(leads, default=1) > 1e-4:  # nearer ties may fall otherwise by rounding, anywhere
            pool.append(Expected(again(request), answer.token_ids, answer.finish_reason, mask_logits))
    return pool


def test_the_pool_has_everything_in_it(pool):
    assert len(pool) > 0.95 * NUM_REQUESTS
    assert {each.reason for each in pool} == {"stop", "length", "max_targets"}
    assert sum(not each.token_ids for each in pool) >= 10 and {len(each.mask_logits) for each in pool} >= {0, 1, 2, 3}
    assert len({tuple(each.token_ids) for each in pool}) > 0.5 * NUM_REQUESTS, "answers must depend on what was asked"


def stepper_configs():
    """Few and many slots, prompts whole and in pieces, a cache for all photos and for one (about 17 kB), two and three of them."""
    return [EngineConfig(num_slots=num_slots, max_rows_per_step=num_rows, photo_cache_mb=cache_mb, max_photos_per_step=num_photos,
                         max_masks_per_step=num_masks, slot_tokens=64)
            for num_slots, num_rows, cache_mb, num_photos, num_masks in (
                (1, 1, 1, 1, 1), (2, 512, 0.018, 2, 3), (3, 7, 0.036, 1, 2), (4, 20, 1, 4, 16), (6, 10, 0.055, 3, 1), (8, 512, 1, 8, 16))]


def interleave(stepper: Stepper, pool: list[Expected], rng: random.Random) -> float:
    """Requests join and leave at random; returns the largest difference of a mask logit to what each gives alone."""
    waiting, asked = [Asked(expected) for expected in rng.choices(pool, k=rng.randint(1, 8))], []
    join_rate, leave_rate = rng.choice((0.2, 0.6, 1.0)), rng.choice((0.0, 0.0, 0.05, 0.3))
    while waiting or not stepper.is_idle:
        while waiting and rng.random() < join_rate:
            each = waiting.pop()
            deadline_s = time.monotonic() + rng.choice((0.0, 0.003)) if rng.random() < leave_rate else None
            each.running = stepper.prepare(again(each.expected.request, deadline_s=deadline_s), each.events.append)
            stepper.add(each.running)
            asked.append(each)
        for each in asked:
            if rng.random() < leave_rate / 4:
                each.running.is_cancelled = True
        stepper.step()
    assert_empty(stepper)
    return max(each.check(may_be_cut=leave_rate > 0) for each in asked)


def test_any_interleaving_gives_the_answers_of_one_by_one(model, pool):
    rng = random.Random(1)
    steppers = [Stepper(model, config) for config in stepper_configs()]
    worst = max(interleave(rng.choice(steppers), pool, rng) for _ in range(NUM_INTERLEAVINGS))
    assert worst < MASK_TOLERANCE


@pytest.fixture
def rows(stepper, monkeypatch):
    """Rows of each forward, by slot: what `SlotCache.forward` was asked for."""
    seen = []
    forward = stepper._slots.forward

    def watch(embeds, positions, pieces):
        seen.append({piece.slot: piece.num_rows for piece in pieces})
        return forward(embeds, positions, pieces)

    monkeypatch.setattr(stepper._slots, "forward", watch)
    return seen


def test_questions_about_one_photo_share_its_vision_pass_and_its_prefill(model, stepper, rows, monkeypatch):
    encoded = []
    encode = stepper.model.encode_photos
    monkeypatch.setattr(stepper.model, "encode_photos", lambda pixels, sizes: (encoded.append(len(pixels)), encode(pixels, sizes))[1])
    photo = mini_photos(model, 1)[0]
    for question in range(10):
        stepper.add(stepper.prepare(some_request(photo, 1, (question + 1, 2)), lambda event: None))
    run(stepper)
    assert encoded == [1]
    assert sum(sum(step.values()) for step in rows) == 5 + 10 * 2, "one prefix of a word and four image tokens, ten questions of two"


def test_photos_that_hide_other_tokens_share_nothing(model, stepper):
    photo = mini_photos(model, 1)[0]
    half = replace(photo, image_token_mask=[1, 1, 0, 0], key="")
    assert half.key != photo.key == replace(photo, key="").key
    both = [ask(stepper, some_request(each)) for each in (photo, half)]
    run(stepper)
    assert max(each.check(may_be_cut=False) for each in both) < MASK_TOLERANCE


def test_hidden_image_tokens_take_no_rows(model, stepper, rows):
    stepper.add(stepper.prepare(some_request(mini_photos(model, 2)[1], 1), lambda event: None))  # 12 x 40: the lower half is padding
    run(stepper)
    assert rows == [{0: 1 + 2 + 3}]


def test_a_group_goes_through_in_one_forward_with_the_next_step(model, stepper, rows):
    group = model.config.codebook_token_ids
    events = []
    stepper.add(stepper.prepare(some_request(mini_photos(model, 1)[0], 10, sampler=Scripted([5, group[0], 6, group[0]])), events.append))
    run(stepper)
    assert [sum(step.values()) for step in rows] == [8, 1, 4, 1, 3], "prompt, word, group, word, last group without its last token"
    assert events[0].token_ids == [5] and events[1].token_ids == group
    assert events[-1] == EndEvent("length", 10) and [event.index for event in events if isinstance(event, MaskEvent)] == [0, 1]


def test_a_long_prompt_does_not_stall_the_others(model, rows, stepper):
    stepper.config = stepper.config.model_copy(update={"max_rows_per_step": 5})
    photos = mini_photos(model, 2)
    first = stepper.prepare(some_request(photos[0], 20, sampler=Scripted([5] * 20)), lambda event: None)
    stepper.add(first)
    stepper.step()
    stepper.step()
    stepper.add(stepper.prepare(some_request(photos[1], 1, [5] * 30), lambda event: None))
    run(stepper)
    assert all(step[0] == 1 for step in rows[2:20]) and rows[2] == {0: 1, 1: 4}, "a token of the first in each step, pieces of the second"


def test_a_mask_comes_before_the_text_is_complete(model, stepper):
    events = []
    sampler = Scripted([model.config.codebook_token_ids[0]] + [5] * 9)
    stepper.add(stepper.prepare(some_request(mini_photos(model, 1)[0], 12, sampler=sampler), events.append))
    run(stepper)
    kinds = [type(event) for event in events]
    assert kinds.index(MaskEvent) < len(kinds) - 5


def test_a_request_waits_until_the_cache_has_room_for_its_photo(model):
    """At the head of the queue: what comes later does not overtake it."""
    stepper, photos = Stepper(model, EngineConfig(num_slots=4, photo_cache_mb=0.018, slot_tokens=64)), mini_photos(model, 2)
    order = []
    for name, photo in (("first", 0), ("other photo", 1), ("first again", 0)):
        stepper.add(stepper.prepare(some_request(photos[photo]), lambda event, name=name: order.append((name, type(event)))))
    run(stepper)
    assert [name for name, kind in order if kind is EndEvent] == ["first", "other photo", "first again"]


@torch.no_grad()
def test_words_alone_are_those_of_transformers():
    """Where no group opens, `generate` of transformers is an independent reference."""
    model = mini_model()
    with torch.no_grad():
        model.codebook.output_rows.zero_()
    stepper, photo = Stepper(model, EngineConfig(slot_tokens=64)), mini_photos(model, 1)[0]  # `generate` would not count hidden tokens
    requests = [some_request(photo, 20, question) for question in ([5], [8, 9, 2], [11] * 12)]
    all_events = []
    for request in requests:
        all_events.append(events := [])
        stepper.add(stepper.prepare(request, events.append))
    run(stepper)
    features = model.encode_photos(photo.pixel_values[None], torch.tensor([photo.resized_size_hw]))
    for request, events in zip(requests, all_events, strict=True):
        embeds = model.embed_tokens(torch.tensor([request.prompt_ids]), features.image_embeds)
        expected = model.language_model.generate(inputs_embeds=embeds, max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert [token for event in events[:-1] for token in event.token_ids] == expected[0].tolist()


def test_in_bfloat16_answers_part_only_at_near_ties(speaking):
    """Products of another batch round otherwise: ids may first differ only where the two best logits are closer than the margin."""
    model, processor = copy.deepcopy(speaking[0]).to(torch.bfloat16), speaking[1]
    stepper, rng, asked = Stepper(model, EngineConfig()), random.Random(0), []
    for index in range(32):
        question = " ".join(rng.choices(("red", "the", "green ring", "where is", "circle?", "one", "other"), k=rng.randint(1, 12)))
        request = Request(photo_inputs(processor)[index % 4], processor.prompt_ids(question), 40, sampler=WatchedGreedy())
        asked.append(ask(stepper, request))
    run(stepper)
    leads = []
    for each in asked:
        found, alone = each.token_ids, each.expected.token_ids
        parting = next((place for place in range(len(alone)) if found[place] != alone[place]), None)
        if parting is not None:
            chosen = [token for token in alone[:parting] if token not in model.config.codebook_token_ids[1:]]
            leads.append(each.expected.request.sampler.leads[len(chosen)])
    assert leads, "bfloat16 is expected to part some of these answers, or this test shows nothing"
    assert max(leads) < BFLOAT16_MARGIN
