"""Continuous batching, one step at a time: answers join and leave a running batch. Knows tokens and masks; no text and no threads.

A step frees what is over, admits who is next, passes new photos through the tower, then runs one packed forward: the tokens of all
running answers (a forced codebook group is several rows of it) and pieces of prompts; last it decodes the masks whose states are known.
Letters: T rows of a step, D language-model width.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixellm.errors import ConfigError, ModelError
from pixellm.inference.answers import TokenRules
from pixellm.inference.config import EngineConfig
from pixellm.inference.cpu import use_inference_attention, use_inference_linear
from pixellm.inference.load import EngineLoad
from pixellm.inference.mask_decoder import MaskDecoder
from pixellm.inference.mask_queue import MaskQueue
from pixellm.inference.photo_cache import CachedPhoto, PhotoCache
from pixellm.inference.requests import EndEvent, EndReason, Event, MaskEvent, Request, TokenEvent
from pixellm.inference.running import Limits, Running
from pixellm.inference.sampling import Greedy
from pixellm.inference.scheduler import FairQueue
from pixellm.inference.slots import Piece, SlotCache, view_of
from pixellm.model import PixelLMForConditionalGeneration


class Stepper:
    """The state of one engine. Not safe for use from several threads: `prepare` alone may be called from any.

    Works on a view of `model` with its weights as they are now; the model itself is left as it is.
    Raises ConfigError when the caches cannot hold one photo or one slot, ModelError for a language model that `SlotCache` cannot run.
    """

    def __init__(self, model: PixelLMForConditionalGeneration, config: EngineConfig):
        self.model, self.config = view_of(model), config
        use_inference_linear(self.model)
        if model.device.type == "cpu":
            use_inference_attention(self.model.vision_tower)
        max_positions = getattr(model.config.text_config, "max_position_embeddings", None) or config.slot_tokens
        self._slots = SlotCache(self.model.language_model.base_model, config.num_slots, min(config.slot_tokens, max_positions),
                                config.kv_cache_mb * 1e6)
        self._rules = TokenRules(model.config)
        self._photos = PhotoCache(int(config.photo_cache_mb * 1e6))
        mask_decoder = MaskDecoder(self.model.mask_head)
        self._masks = MaskQueue(mask_decoder)
        self._limits = Limits(
            image_size=model.config.vision_config.image_size, num_image_tokens=model.config.num_image_tokens,
            image_token_id=model.config.image_token_id, codebook_ids=list(model.config.codebook_token_ids),
            vocabulary_size=len(model.language_model.get_input_embeddings().weight), max_positions=max_positions,
            slot_capacity=self._slots.capacity, photo_bytes=self._measure_photo_bytes(mask_decoder),
            bytes_per_row=self._slots.bytes_per_row, photo_cache_bytes=self._photos.capacity_bytes)
        self._waiting: FairQueue[Running] = FairQueue()
        self._active: list[Running] = []  # in order of admission
        self._free_slots = list(range(self._slots.num_slots))
        self._num_photo_hits = self._num_photo_misses = 0
        self.load = EngineLoad(self._slots.num_slots)  # after the last step; any thread may look

    @property
    def is_idle(self) -> bool:
        return not self._active and not self._waiting

    def prepare(self, request: Request, emit: Callable[[Event], None]) -> Running:
        """Checks a request and makes it ready for `add`. Events go to `emit`, from whoever calls `step`.

        Raises InputError: `client_invalid`, `deadline_invalid`, `max_new_tokens_invalid`, `max_targets_invalid`, `photo_invalid`,
        `prompt_invalid`, `prompt_too_long`.
        """
        return self._limits.to_running(request, emit)

    def add(self, running: Running) -> None:
        """Puts a prepared request into the queue, at the cost of the rows that it will need."""
        num_known_rows = running.num_prefix_rows if running.photo_key in self._photos else 0
        running.cost = len(running.ids) - num_known_rows + running.request.max_new_tokens
        self._waiting.push(running, running.request.client, running.cost)

    @torch.inference_mode()
    def step(self) -> None:
        """One step. An error reaches the requests that it befell as their last event; the stepper stays usable."""
        self._drop_unwanted()
        self._admit()
        self._encode_photos()
        turn = self._choose_rows()
        if turn:
            try:
                self._take(turn, self._forward(turn))
            except Exception as error:
                for running, _ in turn:
                    self._end(running, "error", error)
        self._decode_masks()
        self.load = EngineLoad(self._slots.num_slots, len(self._active), len(self._waiting), sum(running.cost for running in self._active),
                               self._waiting.cost, self._num_photo_hits, self._num_photo_misses)

    def fail(self, running: Running, error: Exception) -> None:
        """Ends a request that is not over."""
        self._end(running, "error", error)

    def fail_all(self, reason: EndReason, error: Exception | None = None) -> None:
        """Ends every request that is not over."""
        for running in [*self._active, *self._waiting.remove(lambda _: True)]:
            self._end(running, reason, error)

    @torch.inference_mode()
    def _measure_photo_bytes(self, mask_decoder: MaskDecoder) -> int:
        """Bytes of a photo's features, from an empty photo. It also shows early whether tower and decoder run."""
        config, device = self.model.config, self.model.device
        side = config.vision_config.image_size
        features = self.model.encode_photos(torch.zeros(1, 3, side, side, device=device), torch.tensor([[side, side]], device=device))
        mask_features = mask_decoder.prepare(tuple(scale[0] for scale in features.scale_features))
        num_bytes = features.image_embeds.nbytes + sum(scale.nbytes for scale in features.scale_features) + mask_features.num_bytes
        needed = num_bytes + config.num_image_tokens * self._slots.bytes_per_row
        if needed > self._photos.capacity_bytes:
            raise ConfigError(f"one photo takes up to {needed / 1e6:.3g} MB, more than photo_cache_mb ({self.config.photo_cache_mb:g}); "
                              "give the cache more")
        return num_bytes

    def _drop_unwanted(self) -> None:
        now_s = time.monotonic()
        gone = self._waiting.remove(lambda running: running.is_unwanted(now_s))
        for running in gone + [running for running in self._active if running.is_unwanted(now_s)]:
            self._end(running, "cancelled" if running.is_cancelled else "expired")

    def _admit(self) -> None:
        while self._free_slots and (running := self._waiting.head()) is not None:
            is_hit = running.photo_key in self._photos
            try:
                photo = self._photos.acquire(running.photo_key, running.num_photo_bytes)
            except Exception as error:
                self._waiting.pop()
                self._end(running, "error", error)
                continue
            if photo is None:
                return
            self._num_photo_hits += is_hit
            self._num_photo_misses += not is_hit
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
            for index, (photo, each) in enumerate(zip(photos, inputs, strict=True)):
                # copies: a part of a batch would keep all of it
                photo.image_embeds = features.image_embeds[index][torch.tensor(each.image_token_mask, dtype=torch.bool)]
                photo.scale_features = tuple(scale[index].clone() for scale in features.scale_features)
        except Exception as error:
            for photo in photos:
                self._photos.discard(photo)
            for running in [running for running in self._active if running.photo in photos]:
                self._end(running, "error", error)

    def _choose_rows(self) -> list[tuple[Running, int]]:
        """Who feeds how many rows in this step, by rising slot."""
        turn = [(running, len(running.ids)) for running in self._active if running.slot >= 0 and not running.num_prompt_rows]
        num_left = max(1, self.config.max_rows_per_step - sum(num_rows for _, num_rows in turn))
        for running in list(self._active):  # of which one that fails is taken out
            if running.num_prompt_rows and num_left and self._may_fill(running):
                num_rows = min(running.num_prompt_rows, num_left)
                turn.append((running, num_rows))
                num_left -= num_rows
        return sorted(turn, key=lambda each: each[0].slot)

    def _may_fill(self, running: Running) -> bool:
        """Whether a prompt can go on. One request fills a photo's keys, the others wait and take a copy; one that cannot take it ends."""
        photo = running.photo
        assert photo is not None
        if running.num_rows == 0 and photo.prefix_keys is not None and photo.prefix_values is not None:
            try:
                self._slots.write(running.slot, photo.prefix_keys, photo.prefix_values)
            except Exception as error:
                self._end(running, "error", error)
                return False
            running.pass_rows(running.num_prefix_rows)
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
        is_finite = hidden.isfinite().all(-1).tolist()
        stop = 0
        for running, num_rows in turn:
            start, stop = stop, stop + num_rows
            try:
                if not all(is_finite[start:stop]):
                    raise ModelError("the model gave hidden states that are not finite")
                self._pass(running, hidden[start:stop])
            except Exception as error:
                self._end(running, "error", error)
                continue
            if not running.ids and not running.answer.is_complete:
                predicting.append(running)
                last_rows.append(stop - 1)
        if not predicting:
            return
        states = hidden[torch.tensor(last_rows, device=hidden.device)]
        logits = self.model.token_logits(states)
        greedy = self._rules.mask_(logits).argmax(-1).tolist()
        for row, running in enumerate(predicting):
            try:
                sampler = running.request.sampler
                token_id = greedy[row] if isinstance(sampler, Greedy) else sampler.choose(logits[row])
                self._accept(running, self._rules.check(token_id, logits.shape[-1]), states[row])
            except Exception as error:
                self._end(running, "error", error)

    def _pass(self, running: Running, hidden: Tensor) -> None:
        """The rows with the states `hidden` are in the request's slot: keeps a photo's complete keys, or an answer's states."""
        photo, was_prompt = running.photo, running.num_prompt_rows > 0
        assert photo is not None
        running.pass_rows(len(hidden))
        if not was_prompt:
            running.answer.add_states(hidden)
            self._go_on(running)
        elif photo.filler is running and running.num_rows >= running.num_prefix_rows:
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
            self._masks.add(running, running.photo, index, running.answer.states[index])
        running.num_masks_due += len(running.answer.states) - running.num_masks
        running.num_masks = len(running.answer.states)
        if running.answer.is_complete:
            self._free_slot(running)
            if not running.num_masks_due:
                self._end(running, running.answer.finish_reason)

    def _decode_masks(self) -> None:
        """The oldest masks that are due, and the ends of those who waited for them."""
        for mask in self._masks.decode(self.config.max_masks_per_step):
            running = mask.running
            if isinstance(mask.result, Exception):
                self._end(running, "error", mask.result)
            elif not running.is_over:
                running.num_masks_due -= 1
                running.emit(MaskEvent(mask.index, mask.result))
                if not running.num_masks_due and running.answer.is_complete:
                    self._end(running, running.answer.finish_reason)

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
            self._masks.drop(running)
        assert reason is not None
        running.emit(EndEvent(reason, len(running.answer.token_ids), error))
