"""The masks whose states are known and that wait to be decoded: those of all answers together, the oldest first.

Letters: K targets of several answers, M side of a mask.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixellm.inference.mask_decoder import MaskDecoder, PhotoMaskFeatures
from pixellm.inference.photo_cache import CachedPhoto
from pixellm.inference.running import Running


@dataclass(frozen=True, eq=False)
class _Job:
    running: Running
    photo: CachedPhoto
    index: int
    states: Tensor


@dataclass(frozen=True, eq=False)
class DecodedMask:
    """Mask `index` of an answer: its logits (M, M) on the CPU, or the error that they ended in."""

    running: Running
    index: int
    result: Tensor | Exception


class MaskQueue:
    """Orders for masks, and their decoding."""

    def __init__(self, decoder: MaskDecoder):
        self._decoder = decoder
        self._jobs: deque[_Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, running: Running, photo: CachedPhoto, index: int, states: Tensor) -> None:
        """Orders mask `index` of an answer, from its states (L*N, D)."""
        self._jobs.append(_Job(running, photo, index, states))

    def drop(self, running: Running) -> None:
        """Nobody wants the masks of this answer any more."""
        self._jobs = deque(job for job in self._jobs if job.running is not running)

    def decode(self, max_masks: int) -> list[DecodedMask]:
        """The oldest masks, at most `max_masks` of them."""
        jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), max_masks))]
        return self._decode(jobs) if jobs else []

    def _decode(self, jobs: Sequence[_Job]) -> list[DecodedMask]:
        """A batch that fails is decoded one by one, so that only the masks at fault are lost."""
        try:
            photos = list({job.photo: None for job in jobs})
            mask_logits = self._decoder.decode([self._features(photo) for photo in photos], [photos.index(job.photo) for job in jobs],
                                               torch.stack([job.states for job in jobs])).cpu()
        except Exception as error:
            if len(jobs) == 1:
                return [DecodedMask(jobs[0].running, jobs[0].index, error)]
            return [mask for job in jobs for mask in self._decode([job])]
        # copies: a part of a batch would keep all of it
        return [DecodedMask(job.running, job.index, logits.clone()) for job, logits in zip(jobs, mask_logits, strict=True)]

    def _features(self, photo: CachedPhoto) -> PhotoMaskFeatures:
        if photo.mask_features is None:
            assert photo.scale_features is not None
            photo.mask_features, photo.scale_features = self._decoder.prepare(photo.scale_features), None
        return photo.mask_features
