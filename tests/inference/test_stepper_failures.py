"""What is wrong with one request, or breaks on its way, costs no other request anything."""

from dataclasses import replace

import pytest
import torch

from pixellm.errors import ConfigError, InputError
from pixellm.inference.config import EngineConfig
from pixellm.inference.requests import MaskEvent, Request
from pixellm.inference.stepper import Stepper
from tests.inference.models import MINI_VOCABULARY, mini_photos
from tests.inference.stepping import MASK_TOLERANCE, Scripted, ask, run, some_request


class Broken:
    def choose(self, logits):
        raise KeyError("broken")


@pytest.mark.parametrize("sampler", [
    Broken(), Scripted([-1]), Scripted([10_000]), Scripted([MINI_VOCABULARY]), Scripted([MINI_VOCABULARY + 2])])
def test_a_bad_sampler_ends_its_own_request_only(model, stepper, sampler):
    photo, events = mini_photos(model, 1)[0], []
    good = ask(stepper, some_request(photo))
    stepper.add(stepper.prepare(some_request(photo, sampler=sampler), events.append))
    run(stepper)
    assert [event.reason for event in events] == ["error"] and events[0].error
    good.check(may_be_cut=False)


def test_numbers_that_are_not_finite_stay_in_their_request(model, stepper):
    photos, events = mini_photos(model, 2), []
    broken = replace(photos[0], pixel_values=photos[0].pixel_values * torch.nan, key="broken")
    stepper.add(stepper.prepare(some_request(broken, question=[5] * 30), events.append))
    beside = ask(stepper, some_request(photos[1]))
    run(stepper)
    # One in the slot that held them, and a longer one beside it: they attend together, over as many rows as the longer has.
    after = [ask(stepper, some_request(photos[1], 9, question)) for question in ([5], [5] * 25)]
    run(stepper)
    assert [event.reason for event in events] == ["error"] and "not finite" in str(events[0].error)
    assert max(each.check(may_be_cut=False) for each in (beside, *after)) < MASK_TOLERANCE


@pytest.mark.parametrize("part", ["forward", "read", "token_logits", "encode_photos", "decode"])
def test_a_step_that_fails_costs_only_who_was_in_it(model, stepper, monkeypatch, part):
    owner = {"forward": stepper._slots, "read": stepper._slots, "token_logits": stepper.model, "encode_photos": stepper.model,
             "decode": stepper._masks._decoder}[part]
    photos, group = mini_photos(model, 2), model.config.codebook_token_ids[0]
    works, fails = getattr(owner, part), []

    def fail_once(*args):
        if not fails:
            fails.append(part)
            raise RuntimeError("out of memory")
        return works(*args)

    request = some_request(photos[0], 9, sampler=Scripted([5, group, 5, 5, 5, 5]))
    events = []
    stepper.add(stepper.prepare(request, events.append))
    with monkeypatch.context() as patch:
        patch.setattr(owner, part, fail_once)
        run(stepper)
    assert fails and events[-1].reason == "error" and str(events[-1].error) == "out of memory"
    later = ask(stepper, some_request(photos[0]))
    run(stepper)
    later.check(may_be_cut=False)


def test_a_prefix_that_cannot_be_copied_ends_its_own_request_only(model, stepper, monkeypatch):
    photo, write, fails, events = mini_photos(model, 1)[0], stepper._slots.write, [], []

    def fail_once(slot, keys, values):
        if not fails:
            fails.append(slot)
            raise RuntimeError("out of memory")
        write(slot, keys, values)

    monkeypatch.setattr(stepper._slots, "write", fail_once)
    first = ask(stepper, some_request(photo))
    stepper.add(stepper.prepare(some_request(photo), events.append))
    last = ask(stepper, some_request(photo, 9, [8]))
    run(stepper)
    assert fails and [str(event.error) for event in events] == ["out of memory"]
    assert max(each.check(may_be_cut=False) for each in (first, last)) < MASK_TOLERANCE


@pytest.mark.parametrize("part", ["acquire", "add_states"])
def test_a_mistake_in_admission_or_with_states_ends_its_own_request_only(model, stepper, monkeypatch, part):
    photos, events = mini_photos(model, 2), []
    good = [ask(stepper, some_request(photos[0]))]
    broken = stepper.prepare(some_request(photos[1], 9, sampler=Scripted([model.config.codebook_token_ids[0], 5, 5])), events.append)
    acquire = stepper._photos.acquire

    def fail(*args):
        raise KeyError("a mistake")

    if part == "acquire":
        monkeypatch.setattr(stepper._photos, part, lambda key, size: (fail if key == broken.photo_key else acquire)(key, size))
    else:
        monkeypatch.setattr(broken.answer, part, fail)
    stepper.add(broken)
    good.append(ask(stepper, some_request(photos[0], 9, [8])))
    run(stepper)
    assert events[-1].reason == "error" and isinstance(events[-1].error, KeyError)
    assert max(each.check(may_be_cut=False) for each in good) < MASK_TOLERANCE


def test_masks_that_cannot_be_decoded_together_are_decoded_alone(model, stepper, monkeypatch):
    decode = stepper._masks._decoder.decode

    def fail_on_many(photos, photo_of_target, states):
        if len(states) > 1:
            raise RuntimeError("out of memory")
        return decode(photos, photo_of_target, states)

    monkeypatch.setattr(stepper._masks._decoder, "decode", fail_on_many)
    group, all_events = model.config.codebook_token_ids[0], []
    for photo in mini_photos(model, 3):
        all_events.append(events := [])
        stepper.add(stepper.prepare(some_request(photo, 6, sampler=Scripted([group, 5, 5])), events.append))
    run(stepper)
    assert [[type(event) for event in events].count(MaskEvent) for events in all_events] == [1, 1, 1]


@pytest.mark.parametrize(("change", "code"), [
    ({"max_new_tokens": 0}, "max_new_tokens_invalid"),
    ({"max_new_tokens": 57}, "prompt_too_long"),
    ({"prompt_ids": [3, 5]}, "prompt_invalid"),
    ({"prompt_ids": [MINI_VOCABULARY] * 3 + [5, MINI_VOCABULARY, 5]}, "prompt_invalid"),
    ({"prompt_ids": [MINI_VOCABULARY] * 8 + [5]}, "prompt_invalid"),
    ({"prompt_ids": [MINI_VOCABULARY] * 4}, "prompt_invalid"),
    ({"prompt_ids": [MINI_VOCABULARY] * 4 + [MINI_VOCABULARY + 5]}, "prompt_invalid"),  # one beyond the codebook
    ({"prompt_ids": [-1] + [MINI_VOCABULARY] * 4 + [5]}, "prompt_invalid"),
    ({"prompt_ids": [MINI_VOCABULARY] * 4 + [5.0]}, "prompt_invalid"),
    ({"client": None}, "client_invalid"),
    ({"deadline_s": "soon"}, "deadline_invalid"),
])
def test_requests_that_cannot_be_answered_are_refused(model, stepper, change, code):
    request = some_request(mini_photos(model, 1)[0], 56)
    stepper.prepare(request, lambda event: None)
    with pytest.raises(InputError) as error:
        stepper.prepare(replace(request, **change), lambda event: None)
    assert error.value.code == code
    for change in ({"pixel_values": torch.zeros(3, 8, 8)}, {"image_token_mask": [1, 1]}, {"image_token_mask": [0] * 4}):
        with pytest.raises(InputError) as error:
            stepper.prepare(replace(request, photo=replace(request.photo, **change)), lambda event: None)
        assert error.value.code == "photo_invalid"


def test_a_bad_id_costs_nobody_else_anything(model, stepper):
    """Codebook ids are no bad ones: an answer may come again in the prompt of the next question."""
    photo = mini_photos(model, 1)[0]
    good = [ask(stepper, some_request(photo)), ask(stepper, some_request(photo, 9, [5, *model.config.codebook_token_ids, 6]))]
    stepper.step()
    with pytest.raises(InputError, match=r"has 53 at place 5, expected an id below 48 or one of \[48, 49, 50, 51, 52\]"):
        stepper.add(stepper.prepare(some_request(photo, question=[53]), lambda event: None))
    run(stepper)
    assert max(each.check(may_be_cut=False) for each in good) < MASK_TOLERANCE


def test_slots_shorter_than_the_positions_limit_prompts(model):
    stepper = Stepper(model, EngineConfig(slot_tokens=16))
    with pytest.raises(InputError, match="the 16 tokens of a slot"):
        stepper.prepare(some_request(mini_photos(model, 1)[0], 9), lambda event: None)


def test_a_cache_too_small_for_one_photo_is_refused(model):
    with pytest.raises(ConfigError, match="photo_cache_mb"):
        Stepper(model, EngineConfig(photo_cache_mb=0.001))
    stepper, photo = Stepper(model, EngineConfig(photo_cache_mb=0.017)), mini_photos(model, 1)[0]
    stepper.prepare(Request(photo, [MINI_VOCABULARY] * 4 + [5], 1), lambda event: None)
    with pytest.raises(InputError, match=r"the 20 tokens before it take 0\.0215 MB, the photo cache holds 0\.017"):
        stepper.prepare(Request(photo, [3] * 20 + [MINI_VOCABULARY] * 4 + [5], 1), lambda event: None)
