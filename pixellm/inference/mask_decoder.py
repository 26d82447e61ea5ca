"""Placeholder with the agreed interface; the fast one replaces it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pixellm.model.modeling_pixellm import MaskHead


@dataclass(frozen=True, eq=False)
class PhotoMaskFeatures:
    scale_features: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(each.nbytes for each in self.scale_features)


class MaskDecoder:
    def __init__(self, mask_head: MaskHead):
        self._mask_head = mask_head

    def prepare(self, scale_features: tuple[Tensor, ...]) -> PhotoMaskFeatures:
        return PhotoMaskFeatures(scale_features)

    def decode(self, photos: list[PhotoMaskFeatures], photo_of_target: list[int], states: Tensor) -> Tensor:
        stacked = tuple(torch.stack(scale) for scale in zip(*(photo.scale_features for photo in photos), strict=True))
        return self._mask_head(stacked, torch.tensor(photo_of_target, device=states.device), states)[0]
