"""Twenty thousand requests through one engine: memory stays flat, nothing is held at the end, and the last answer is like the first."""

import os
import random
import resource
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixellm.inference.config import EngineConfig
from pixellm.inference.engine import Engine
from pixellm.inference.requests import PhotoInput
from pixellm.inference.sampling import Sampled
from tests.inference.models import mini_model, mini_photos
from tests.inference.test_stepper import assert_empty, random_request

NUM_REQUESTS = 20_000
NUM_WAITING = 50
GROWTH_MB = 30  # 13 seen in the second half; before it, caches of compiled kernels and of the allocator fill


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_twenty_thousand_requests():
    model, rng = mini_model(), random.Random(0)
    known = mini_photos(model, 5)
    config = EngineConfig(num_slots=8, slot_tokens=64, photo_cache_mb=0.3)
    with Engine(model, config) as engine:
        waiting, resident, reasons = deque(), {}, set()
        for number in range(NUM_REQUESTS):
            photo = rng.choice(known)
            if rng.random() < 0.3:  # never seen before
                photo = PhotoInput(torch.randn_like(photo.pixel_values), photo.resized_size_hw, photo.photo_size_hw, photo.image_token_mask)
            request = random_request(rng, [photo])
            if not isinstance(request.sampler, Sampled):
                request = replace(request, sampler=Sampled(seed=number))
            stream = engine.submit(replace(request, client=str(number)))
            waiting.append(stream)
            if rng.random() < 0.1:
                stream.cancel()
            if len(waiting) > NUM_WAITING:
                reasons.add(list(waiting.popleft())[-1].reason)
            if number % (NUM_REQUESTS // 10) == NUM_REQUESTS // 10 - 1:
                resident[number + 1] = round(resident_mb(), 1)
        reasons |= {list(stream)[-1].reason for stream in waiting}
        stepper = engine._loop.stepper
    assert reasons == {"stop", "length", "max_targets", "cancelled"}
    assert_empty(stepper)
    assert len(stepper._photos) > 1 and not stepper._waiting._client_end
    print(resident)
    assert resident[NUM_REQUESTS] - resident[NUM_REQUESTS // 2] < GROWTH_MB, resident
