"""What was computed of photos, kept for the next question: bounded in bytes, least recently used out first. Knows no model.

Letters: I' visible image tokens, D language-model width, L scales, P patches, D_v vision width, G key heads, E head width.
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from pixellm.inference.mask_decoder import PhotoMaskFeatures

PhotoKey = tuple[str, tuple[int, ...]]  # the photo's content, and the ids before it in the prompt


@dataclass(eq=False)
class CachedPhoto:
    """One photo behind one beginning of a prompt. Each part is there from when it was computed until what replaces it is.

    image_embeds: (I', D); then prefix_keys, prefix_values: (layers, G, rows, E) of the prompt up to the last image token.
    scale_features: L x (P, D_v); then mask_features, from the first mask on.
    filler: whoever is computing the keys now; the others wait.
    """

    key: PhotoKey
    num_bytes: int
    num_users: int = 0
    image_embeds: Tensor | None = None
    prefix_keys: Tensor | None = None
    prefix_values: Tensor | None = None
    scale_features: tuple[Tensor, ...] | None = None
    mask_features: PhotoMaskFeatures | None = None
    filler: object | None = None


class PhotoCache:
    """At most `capacity_bytes` of photos, each counted with all that it may come to hold. Photos in use stay."""

    def __init__(self, capacity_bytes: int):
        self.capacity_bytes, self.num_bytes = capacity_bytes, 0
        self._photos: OrderedDict[PhotoKey, CachedPhoto] = OrderedDict()

    def __len__(self) -> int:
        return len(self._photos)

    def __contains__(self, key: PhotoKey) -> bool:
        return key in self._photos

    def acquire(self, key: PhotoKey, num_bytes: int) -> CachedPhoto | None:
        """The photo of `key`, new and empty if it was not there, with one more user. None while photos in use leave no room for it."""
        photo = self._photos.get(key)
        if photo is None:
            in_use = sum(each.num_bytes for each in self._photos.values() if each.num_users)
            if in_use + num_bytes > self.capacity_bytes:
                return None
            for old in [each for each in self._photos.values() if not each.num_users]:
                if self.num_bytes + num_bytes <= self.capacity_bytes:
                    break
                self.discard(old)
            photo = self._photos[key] = CachedPhoto(key, num_bytes)
            self.num_bytes += num_bytes
        self._photos.move_to_end(key)
        photo.num_users += 1
        return photo

    def release(self, photo: CachedPhoto) -> None:
        """One user less."""
        photo.num_users -= 1

    def discard(self, photo: CachedPhoto) -> None:
        """Forgets a photo, so that its next question computes it anew; whoever still uses it keeps it."""
        if self._photos.get(photo.key) is photo:
            del self._photos[photo.key]
            self.num_bytes -= photo.num_bytes
