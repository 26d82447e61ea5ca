"""What the tests of the stepper share: requests, what each gets alone, and running them to the end."""

from dataclasses import dataclass, field, replace

import torch

from pixellm.inference.requests import EndEvent, Event, MaskEvent, Request, TokenEvent
from pixellm.inference.sampling import Greedy, Sampled
from pixellm.inference.stepper import Stepper
from pixellm.testing import generate_alone
from tests.inference.models import MINI_VOCABULARY

MASK_TOLERANCE = 1e-4  # 2.2e-5 is the worst seen in the interleavings, on logits of up to 2.5


@dataclass
class Expected:
    """A request, and what it gets alone."""

    request: Request
    token_ids: list[int]
    reason: str
    mask_logits: torch.Tensor


@dataclass
class Asked:
    expected: Expected
    events: list[Event] = field(default_factory=list)
    running: object = None

    @property
    def token_ids(self) -> list[int]:
        return [token for event in self.events if isinstance(event, TokenEvent) for token in event.token_ids]

    def check(self, may_be_cut: bool) -> float:
        """Holds the events against what was expected; returns the largest difference of a mask logit."""
        *before, end = self.events
        assert isinstance(end, EndEvent) and not any(isinstance(event, EndEvent) for event in before)
        token_ids = self.token_ids
        masks = {event.index: event.mask_logits for event in before if isinstance(event, MaskEvent)}
        assert end.num_tokens == len(token_ids) and sorted(masks) == list(range(len(masks)))
        if may_be_cut and end.reason in ("cancelled", "expired"):
            assert token_ids == self.expected.token_ids[:len(token_ids)]
        else:
            assert (token_ids, end.reason, end.error) == (self.expected.token_ids, self.expected.reason, None)
            assert len(masks) == len(self.expected.mask_logits)
        return max((float((masks[index] - self.expected.mask_logits[index]).abs().max()) for index in masks), default=0.0)


def again(request: Request, **changes) -> Request:
    """The same request with a sampler at its start."""
    sampler = request.sampler
    fresh = Greedy() if isinstance(sampler, Greedy) else Sampled(sampler.temperature, sampler.top_p, sampler.seed)
    return replace(request, sampler=fresh, **changes)


def assert_empty(stepper: Stepper) -> None:
    """Nothing is held for anybody."""
    photos = stepper._photos
    assert sorted(stepper._free_slots) == list(range(stepper.config.num_slots))
    assert not stepper._masks and not any(photo.num_users or photo.filler for photo in photos._photos.values())
    assert photos.num_bytes == sum(photo.num_bytes for photo in photos._photos.values()) <= photos.capacity_bytes


def ask(stepper: Stepper, request: Request) -> Asked:
    """Puts the request in; `expected` is what it gets alone."""
    answer, mask_logits = generate_alone(stepper.model, request)
    asked = Asked(Expected(request, answer.token_ids, answer.finish_reason, mask_logits))
    asked.running = stepper.prepare(again(request), asked.events.append)
    stepper.add(asked.running)
    return asked


def run(stepper: Stepper) -> int:
    """Steps until nothing is left to do; returns their number."""
    num_steps = 0
    while not stepper.is_idle:
        stepper.step()
        num_steps += 1
    assert_empty(stepper)
    return num_steps


def some_request(photo, num_new_tokens=9, question=(5, 6, 7), **options) -> Request:
    return Request(photo, [3] + [MINI_VOCABULARY] * 4 + list(question), num_new_tokens, **options)


@dataclass
class Scripted:
    """Chooses these ids whatever the logits are."""

    token_ids: list[int]

    def choose(self, logits: torch.Tensor) -> int:
        return self.token_ids.pop(0)
