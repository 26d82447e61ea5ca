"""Continuous batching, one step at a time: answers join and leave a running batch. Knows tokens and masks; no text and no threads.

A step frees what is over, admits who is next, passes new photos through the tower, then runs one packed forward: the tokens of all
running answers (a forced codebook group is several rows of it) and pieces of prompts; last it decodes the masks whose states are known.
Letters: T rows of a step, D language-model width, K targets of several answers, M side of a mask.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixellm.errors import ConfigError, InputError, ModelError
from pixellm.inference.answers import Answer, TokenRules
from pixellm.inference.config import EngineConfig
from pixellm.inference.cpu import use_inference_attention, use_inference_linear
from pixellm.inference.mask_decoder import MaskDecoder, PhotoMaskFeatures
from pixellm.inference.photo_cache import CachedPhoto, PhotoCache, PhotoKey
from pixellm.inference.requests import EndEvent, EndReason, Event, MaskEvent, Request, TokenEvent
from pixellm.inference.sampling import Greedy
from pixellm.inference.scheduler import FairQueue
from pixellm.inference.slots import Piece, SlotCache, view_of
from pixellm.model import PixelLMForConditionalGeneration


@dataclass(eq=False)
class Running:
    """A request on its way. `ids` and `positions` are the rows to be fed next; hidden image tokens are left out of them.

    slot: -1 while it waits, and again after the last token. num_rows: how many its slot holds. prompt_rows: of the prompt not fed yet.
    """

    request: Request
    emit: Callable[[Event], None]
    answer: Answer
    photo_key: PhotoKey
    ids: list[int]
    positions: list[int]
    num_prefix_rows: int  # up to the last image token
    prompt_rows: int
    num_image_rows: int = 0  # fed already
    num_rows: int = 0
    slot: int = -1
    photo: CachedPhoto | None = None
    num_masks: int = 0  # ordered so far
    num_masks_due: int = 0  # of them not given out yet
    is_cancelled: bool = False
    is_over: bool = False

    def is_unwanted(self, now_s: float) -> bool:
        return self.is_cancelled or (self.request.deadline_s is not None and now_s >= self.request.deadline_s)

    def fed(self, num_rows: int) -> None:
        """The next `num_rows` rows went through."""
        del self.ids[:num_rows], self.positions[:num_rows]
        self.num_rows += num_rows
        self.prompt_rows = max(0, self.prompt_rows - num_rows)


@dataclass(frozen=True, eq=False)
class _MaskJob:
    running: Running
    photo: CachedPhoto
    index: int
    states: Tensor


class Stepper:
    """The state of one engine. Not safe for use from several threads: `prepare` alone may be called from any.

    Works on a view of `model` with its weights as they are now; the model itself is left as it is.
    Raises ConfigError when the photo cache cannot hold one photo, ModelError for a language model that `SlotCache` cannot run.
    """

    def __init__(self, model: PixelLMForConditionalGeneration, config: EngineConfig):
        self.model, self.config = view_of(model), config
        use_inference_linear(self.model)
        if model.device.type == "cpu":
            use_inference_attention(self.model.vision_tower)
        self._max_positions = getattr(model.config.text_config, "max_position_embeddings", None) or config.slot_tokens
        self._codebook_ids = list(model.config.codebook_token_ids)
        self._rules = TokenRules(model.config)
        self._slots = SlotCache(self.model.language_model.base_model, config.num_slots, min(config.slot_tokens, self._max_positions))
        self._mask_decoder = MaskDecoder(self.model.mask_head)
        self._photos = PhotoCache(int(config.photo_cache_mb * 1e6))
        self._photo_bytes = self._measure_photo_bytes()
        self._waiting: FairQueue[Running] = FairQueue()
        self._active: list[Running] = []  # in order of admission
        self._free_slots = list(range(config.num_slots))
        self._mask_jobs: deque[_MaskJob] = deque()

    @property
    def is_idle(self) -> bool:
        return not self._active and not self._waiting

    def prepare(self, request: Request, emit: Callable[[Event], None]) -> Running:
        """Checks a request and makes it ready for `add`. Events go to `emit`, from whoever calls `step`.

        Raises InputError: `prompt_too_long`, `prompt_invalid`, `photo_invalid`, `max_new_tokens_invalid`.
        """
        ids, image_id = list(request.prompt_ids), self.model.config.image_token_id
        side, num_image_tokens = self.model.config.vision_config.image_size, self.model.config.num_image_tokens
        if request.max_new_tokens < 1:
            raise InputError("max_new_tokens_invalid", f"max_new_tokens is {request.max_new_tokens}, expected at least 1")
        if tuple(request.photo.pixel_values.shape) != (3, side, side) or len(request.photo.image_token_mask) != num_image_tokens:
            raise InputError("photo_invalid", f"the photo has pixels {tuple(request.photo.pixel_values.shape)} and "
                             f"{len(request.photo.image_token_mask)} image tokens, expected (3, {side}, {side}) and {num_image_tokens}")
        start = ids.index(image_id) if image_id in ids else 0
        stop = start + num_image_tokens
        if ids.count(image_id) != num_image_tokens or set(ids[start:stop]) != {image_id} or stop == len(ids):
            raise InputError("prompt_invalid", f"the prompt has {ids.count(image_id)} image tokens, expected one run of {num_image_tokens} "
                             "and text after it")
        if len(ids) + request.max_new_tokens > self._max_positions:
            raise InputError("prompt_too_long", f"a prompt of {len(ids)} tokens and {request.max_new_tokens} new ones exceed the model's "
                             f"{self._max_positions} positions; ask a shorter question or for fewer tokens")
        # Positions count hidden image tokens, but nothing ever attends to them: their rows need not exist.
        positions = [place for place in range(len(ids))
                     if not start <= place < stop or request.photo.image_token_mask[place - start]]
        if len(positions) + request.max_new_tokens > self._slots.capacity:
            raise InputError("prompt_too_long", f"a prompt of {len(positions)} tokens and {request.max_new_tokens} new ones exceed the "
                             f"{self._slots.capacity} tokens of a slot; ask a shorter question or for fewer tokens")
        num_prefix_rows = len(positions) - (len(ids) - stop)
        if self._num_photo_bytes(num_prefix_rows) > self._photos.capacity_bytes:
            raise InputError("prompt_too_long", f"the photo and the {start} tokens before it do not fit into the cache of "
                             f"{self.config.photo_cache_mb:g} MB; put the text after the photo")
        return Running(request, emit, Answer(request, self._codebook_ids), (request.photo.key, tuple(ids[:start])),
                       [ids[place] for place in positions], positions, num_prefix_rows, len(positions))

    def add(self, running: Running) -> None:
        """Puts a prepared request into the queue, at the cost of the rows that it will need."""
        num_known_rows = running.num_prefix_rows if running.photo_key in self._photos else 0
        self._waiting.push(running, running.request.client, len(running.ids) - num_known_rows + running.request.max_new_tokens)

    @torch.inference_mode()
    def step(self) -> None:
        """One step. An error reaches the requests that it befell as their last event; the stepper stays usable."""
        self._drop_unwanted()
        self._admit()
        self._encode_photos()
        turn = self._choose_rows()
        if turn:
            try:
                hidden = self._forward(turn)
            except Exception as error:
                for running, _ in turn:
                    self._end(running, "error", error)
            else:
                self._take(turn, hidden)
        self._decode_masks()

    def fail_all(self, reason: EndReason, error: Exception | None = None) -> None:
        """Ends every request that is not over."""
        for running in [*self._active, *self._waiting.remove(lambda _: True)]:
            self._end(running, reason, error)

    def _measure_photo_bytes(self) -> int:
        """Bytes of a photo's features, from an empty photo. It also shows early whether tower and decoder run."""
        side = self.model.config.vision_config.image_size
        with torch.inference_mode():
            size_hw = torch.tensor([[side, side]], device=self.model.device)
            features = self.model.encode_photos(torch.zeros(1, 3, side, side, device=self.model.device), size_hw)
            mask_features = self._mask_decoder.prepare(tuple(scale[0] for scale in features.scale_features))
        num_bytes = features.image_embeds.nbytes + sum(scale.nbytes for scale in features.scale_features) + mask_features.num_bytes
        needed = num_bytes + self.model.config.num_image_tokens * self._slots.bytes_per_row
        if needed > self._photos.capacity_bytes:
            raise ConfigError(f"one photo takes up to {needed / 1e6:.3g} MB, more than photo_cache_mb ({self.config.photo_cache_mb:g}); "
                              "give the cache more")
        return num_bytes

    def _num_photo_bytes(self, num_prefix_rows: int) -> int:
        return self._photo_bytes + num_prefix_rows * self._slots.bytes_per_row

    def _drop_unwanted(self) -> None:
        now_s = time.monotonic()
        gone = self._waiting.remove(lambda running: running.is_unwanted(now_s))
        for running in gone + [running for running in self._active if running.is_unwanted(now_s)]:
            self._end(running, "cancelled" if running.is_cancelled else "expired")

    def _admit(self) -> None:
        while self._free_slots and (running := self._waiting.head()) is not None:
            photo = self._photos.acquire(running.photo_key, self._num_photo_bytes(running.num_prefix_rows))
            if photo is None:
                return
            self._waiting.pop()
            self._free_slots.sort()  # the lowest, so that running answers are neighbours and attend together
            running.slot, running.photo = self._free_slots.pop(0), photo
            self._active.append(running)

    def _encode_photos(self) -> None:
        """A vision pass for photos that were never seen."""
        new: dict[CachedPhoto, Running] = {}
        for running in self._active:
            assert running.photo is not None
            if running.photo.scale_features is None and running.photo.mask_features is None:
                new.setdefault(running.photo, running)
        photos = list(new)[:self.config.max_photos_per_step]
        if not photos:
            return
        inputs = [new[photo].request.photo for photo in photos]
        try:
            features = self.model.encode_photos(torch.stack([each.pixel_values for each in inputs]).to(self.model.device),
                                                torch.tensor([each.resized_size_hw for each in inputs], device=self.model.device))
        except Exception as error:
            for photo in photos:
                self._photos.discard(photo)
            for running in [running for running in self._active if running.photo in photos]:
                self._end(running, "error", error)
            return
        for index, (photo, each) in enumerate(zip(photos, inputs, strict=True)):
            # copies: a part of a batch would keep all of it
            photo.image_embeds = features.image_embeds[index][torch.tensor(each.image_token_mask, dtype=torch.bool)]
            photo.scale_features = tuple(scale[index].clone() for scale in features.scale_features)

    def _choose_rows(self) -> list[tuple[Running, int]]:
        """Who feeds how many rows in this step, by rising slot."""
        turn = [(running, len(running.ids)) for running in self._active if running.slot >= 0 and not running.prompt_rows]
        num_left = max(1, self.config.max_rows_per_step - sum(num_rows for _, num_rows in turn))
        for running in self._active:
            if running.prompt_rows and num_left and self._may_fill(running):
                num_rows = min(running.prompt_rows, num_left)
                turn.append((running, num_rows))
                num_left -= num_rows
        return sorted(turn, key=lambda each: each[0].slot)

    def _may_fill(self, running: Running) -> bool:
        """Whether a prompt can go on. One request fills a photo's keys, the others wait and take a copy."""
        photo = running.photo
        assert photo is not None
        if running.num_rows == 0 and photo.prefix_keys is not None and photo.prefix_values is not None:
            self._slots.write(running.slot, photo.prefix_keys, photo.prefix_values)
            running.fed(running.num_prefix_rows)
        elif running.num_rows == 0 and photo.filler is None and photo.image_embeds is not None:
            photo.filler = running
        return running.num_rows > 0 or photo.filler is running

    def _forward(self, turn: Sequence[tuple[Running, int]]) -> Tensor:
        """Final hidden states (T, D) of the chosen rows."""
        ids, positions, pieces, image_rows = [], [], [], []
        for running, num_rows in turn:
            ids += running.ids[:num_rows]
            positions += running.positions[:num_rows]
            pieces.append(Piece(running.slot, running.num_rows, num_rows))
            num_images = running.ids[:num_rows].count(self.model.config.image_token_id)
            if num_images:
                assert running.photo is not None and running.photo.image_embeds is not None
                image_rows.append(running.photo.image_embeds[running.num_image_rows:running.num_image_rows + num_images])
                running.num_image_rows += num_images
        embeds = self.model.embed_tokens(torch.tensor([ids], device=self.model.device),
                                         torch.cat(image_rows).unsqueeze(0) if image_rows else None)
        return self._slots.forward(embeds.squeeze(0), torch.tensor(positions, device=self.model.device), pieces)

    def _take(self, turn: Sequence[tuple[Running, int]], hidden: Tensor) -> None:
        """Hands the hidden states to their answers, and predicts the next token of those that have nothing left to feed."""
        predicting: list[Running] = []
        last_rows: list[int] = []
        stop = 0
        for running, num_rows in turn:
            start, stop = stop, stop + num_rows
            was_prompt = running.prompt_rows > 0
            running.fed(num_rows)
            if was_prompt:
                self._keep_prefix(running)
            else:
                running.answer.add_states(hidden[start:stop])
                self._go_on(running)
            if not running.ids and not running.answer.is_complete:
                predicting.append(running)
                last_rows.append(stop - 1)
        if not predicting:
            return
        states = hidden[torch.tensor(last_rows, device=hidden.device)]
        logits = self.model.token_logits(states)
        is_finite = logits.isfinite().all(-1).tolist()
        greedy = self._rules.mask_(logits).argmax(-1).tolist()
        for row, running in enumerate(predicting):
            try:
                if not is_finite[row]:
                    raise ModelError("the model gave logits that are not finite")
                sampler = running.request.sampler
                token_id = greedy[row] if isinstance(sampler, Greedy) else sampler.choose(logits[row])
                self._accept(running, self._rules.check(token_id, logits.shape[-1]), states[row])
            except Exception as error:
                self._end(running, "error", error)

    def _keep_prefix(self, running: Running) -> None:
        photo = running.photo
        assert photo is not None
        if photo.filler is running and running.num_rows >= running.num_prefix_rows:
            photo.prefix_keys, photo.prefix_values = self._slots.read(running.slot, running.num_prefix_rows)
            photo.image_embeds = photo.filler = None

    def _accept(self, running: Running, token_id: int, state: Tensor) -> None:
        answer = running.answer
        num_before = len(answer.token_ids)
        running.ids = answer.accept(token_id, state)
        position = len(running.request.prompt_ids) + num_before
        running.positions = list(range(position, position + len(running.ids)))
        if len(answer.token_ids) > num_before:
            running.emit(TokenEvent(answer.token_ids[num_before:]))
        self._go_on(running)

    def _go_on(self, running: Running) -> None:
        """Orders the masks whose states are known, and ends the text when it is complete."""
        assert running.photo is not None
        for index in range(running.num_masks, len(running.answer.states)):
            self._mask_jobs.append(_MaskJob(running, running.photo, index, running.answer.states[index]))
        running.num_masks_due += len(running.answer.states) - running.num_masks
        running.num_masks = len(running.answer.states)
        if running.answer.is_complete:
            self._free_slot(running)
            if not running.num_masks_due:
                self._end(running, running.answer.finish_reason)

    def _decode_masks(self) -> None:
        """The oldest masks that are due, of any answers, together."""
        num_jobs = min(len(self._mask_jobs), self.config.max_masks_per_step)
        jobs = [self._mask_jobs.popleft() for _ in range(num_jobs)]
        for running, error in self._decode(jobs):
            self._end(running, "error", error)
        for running in {job.running: None for job in jobs}:
            if not running.num_masks_due and running.answer.is_complete:
                self._end(running, running.answer.finish_reason)

    def _decode(self, jobs: Sequence[_MaskJob]) -> list[tuple[Running, Exception]]:
        """Decodes and gives out; a batch that fails is decoded one by one, so that only those at fault are lost. Returns them."""
        if not jobs:
            return []
        try:
            photos = list({job.photo: None for job in jobs})
            mask_logits = self._mask_decoder.decode([self._mask_features(photo) for photo in photos],
                                                    [photos.index(job.photo) for job in jobs],
                                                    torch.stack([job.states for job in jobs])).cpu()
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0].running, error)]
            return [failed for job in jobs for failed in self._decode([job])]
        for job, logits in zip(jobs, mask_logits, strict=True):
            job.running.num_masks_due -= 1
            job.running.emit(MaskEvent(job.index, logits.clone()))
        return []

    def _mask_features(self, photo: CachedPhoto) -> PhotoMaskFeatures:
        if photo.mask_features is None:
            assert photo.scale_features is not None
            photo.mask_features, photo.scale_features = self._mask_decoder.prepare(photo.scale_features), None
        return photo.mask_features

    def _free_slot(self, running: Running) -> None:
        self._free_slots.append(running.slot)
        running.slot, running.ids, running.positions = -1, [], []

    def _end(self, running: Running, reason: EndReason | None, error: Exception | None = None) -> None:
        """The last event, once; whatever the request holds is free from here on."""
        if running.is_over:
            return
        running.is_over = True
        if running.slot >= 0:
            self._slots.clear(running.slot, min(running.num_rows + len(running.ids), self._slots.capacity))
            self._free_slot(running)
        if running.photo is not None:
            if running.photo.filler is running:
                running.photo.filler = None
            self._photos.release(running.photo)
            self._active.remove(running)
        if running.num_masks_due:
            self._mask_jobs = deque(job for job in self._mask_jobs if job.running is not running)
        assert reason is not None
        running.emit(EndEvent(reason, len(running.answer.token_ids), error))
