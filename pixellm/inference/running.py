"""A request on its way through the engine, and what it must be like to be let in. Knows no model."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from pixellm.errors import InputError
from pixellm.inference.answers import Answer
from pixellm.inference.photo_cache import CachedPhoto, PhotoKey
from pixellm.inference.requests import Event, Request


@dataclass(eq=False)
class Running:
    """What is known of a request between its arrival and its last event.

    ids, positions: the rows to be fed next; of the image tokens, only those that see a part of the photo.
    slot: -1 while it waits, and again after the last token. num_rows: how many its slot holds. num_prompt_rows: of the prompt, not fed yet.
    """

    request: Request
    emit: Callable[[Event], None]
    answer: Answer
    photo_key: PhotoKey
    num_photo_bytes: int  # that its photo may take in the cache
    ids: list[int]
    positions: list[int]
    num_prefix_rows: int  # of the prompt, up to the last image token
    num_prompt_rows: int
    cost: float = 0.0  # for which it waits and then runs
    num_image_rows: int = 0  # fed already
    num_rows: int = 0
    slot: int = -1
    photo: CachedPhoto | None = None
    num_masks: int = 0  # ordered so far
    num_masks_due: int = 0  # of them not given out yet
    is_cancelled: bool = False
    is_over: bool = False

    def is_unwanted(self, now_s: float) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.is_cancelled or (self.request.deadline_s is not None and now_s >= self.request.deadline_s)

    def pass_rows(self, num_rows: int) -> None:
        """The next `num_rows` rows are in the slot."""
        del self.ids[:num_rows], self.positions[:num_rows]
        self.num_rows += num_rows
        self.num_prompt_rows = max(0, self.num_prompt_rows - num_rows)


@dataclass(frozen=True)
class Limits:
    """What one engine and its model can take."""

    image_size: int
    num_image_tokens: int
    image_token_id: int
    codebook_ids: list[int]
    vocabulary_size: int  # of the language model's own table
    max_positions: int
    slot_capacity: int
    photo_bytes: int  # of a photo without its keys and values
    bytes_per_row: int  # of keys and values
    photo_cache_bytes: int

    def to_running(self, request: Request, emit: Callable[[Event], None]) -> Running:
        """What would fail in the forward is refused here, since there it would end everybody's answers.

        Raises InputError: `client_invalid`, `deadline_invalid`, `max_new_tokens_invalid`, `max_targets_invalid`, `photo_invalid`,
        `prompt_invalid`, `prompt_too_long`.
        """
        ids, photo, num_new = list(request.prompt_ids), request.photo, request.max_new_tokens
        if not isinstance(request.client, str):
            raise InputError("client_invalid", f"client is {request.client!r}, expected a string")
        if request.deadline_s is not None and not isinstance(request.deadline_s, Real):
            raise InputError("deadline_invalid", f"deadline_s is {request.deadline_s!r}, expected seconds, or None for no deadline")
        if num_new < 1:
            raise InputError("max_new_tokens_invalid", f"max_new_tokens is {num_new}, expected at least 1")
        if request.max_targets is not None and request.max_targets < 0:
            raise InputError("max_targets_invalid", f"max_targets is {request.max_targets}, expected at least 0, or None for no limit")
        if tuple(photo.pixel_values.shape) != (3, self.image_size, self.image_size):
            raise InputError("photo_invalid", f"the photo has pixels {tuple(photo.pixel_values.shape)}, "
                             f"expected (3, {self.image_size}, {self.image_size}); use the model's image processor")
        if len(photo.image_token_mask) != self.num_image_tokens or not any(photo.image_token_mask):
            raise InputError("photo_invalid", f"the photo has {sum(photo.image_token_mask)} visible of {len(photo.image_token_mask)} image "
                             f"tokens, expected some of {self.num_image_tokens}; use the model's image processor")
        special_ids = {self.image_token_id, *self.codebook_ids}
        for place, each in enumerate(ids):
            if not isinstance(each, Integral) or not (0 <= each < self.vocabulary_size or each in special_ids):
                raise InputError("prompt_invalid", f"the prompt has {each!r} at place {place}, expected an id below {self.vocabulary_size} "
                                 f"or one of {sorted(special_ids)}; use the model's processor")
        start = ids.index(self.image_token_id) if self.image_token_id in ids else 0
        stop = start + self.num_image_tokens
        if ids.count(self.image_token_id) != self.num_image_tokens or set(ids[start:stop]) != {self.image_token_id} or stop == len(ids):
            raise InputError("prompt_invalid", f"the prompt has {ids.count(self.image_token_id)} image tokens, expected one run of "
                             f"{self.num_image_tokens} and text after it; use the model's processor")
        if len(ids) + num_new > self.max_positions:
            raise InputError("prompt_too_long", f"a prompt of {len(ids)} tokens and {num_new} new ones exceed the model's "
                             f"{self.max_positions} positions; ask a shorter question or for fewer tokens")
        # Positions count hidden image tokens, but nothing ever attends to them: their rows need not exist.
        positions = [place for place in range(len(ids)) if not start <= place < stop or photo.image_token_mask[place - start]]
        if len(positions) + num_new > self.slot_capacity:
            raise InputError("prompt_too_long", f"a prompt of {len(positions)} tokens and {num_new} new ones exceed the "
                             f"{self.slot_capacity} tokens of a slot (slot_tokens); ask a shorter question or for fewer tokens")
        num_prefix_rows = len(positions) - (len(ids) - stop)
        num_photo_bytes = self.photo_bytes + num_prefix_rows * self.bytes_per_row
        if num_photo_bytes > self.photo_cache_bytes:
            raise InputError("prompt_too_long", f"the photo and the {start} tokens before it take {num_photo_bytes / 1e6:.3g} MB, the "
                             f"photo cache holds {self.photo_cache_bytes / 1e6:.3g}; put the text after the photo")
        return Running(request, emit, Answer(request, self.codebook_ids), (photo.key, tuple(ids[:start])), num_photo_bytes,
                       [ids[place] for place in positions], positions, num_prefix_rows, len(positions))
