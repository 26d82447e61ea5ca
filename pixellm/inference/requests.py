"""What goes into the engine and what comes out: requests and their events. Knows tokens and masks, no text, no threads.

Letters: I image tokens of a photo, S side of the padded photo, M side of a mask.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from torch import Tensor

from pixellm.inference.sampling import Greedy, Sampler
from pixellm.model.processing_pixellm import PixelLMImageProcessor

FinishReason = Literal["stop", "length", "max_targets"]  # of an answer
EndReason = FinishReason | Literal["cancelled", "expired", "error"]  # of a request


@dataclass(frozen=True, eq=False)
class PhotoInput:
    """A photo as the image processor gives it: `pixel_values` (3, S, S) float32, the size of the part that is not padding, the size of the
    upright photo (for whoever makes masks of that size), and which of the I image tokens see any of it (0 or 1).

    Photos with equal `key` share one vision pass and one prefill; by default the key is a hash of pixels, size and mask.
    """

    pixel_values: Tensor
    resized_size_hw: tuple[int, int]
    photo_size_hw: tuple[int, int]
    image_token_mask: Sequence[int]
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            pixels = self.pixel_values.contiguous().cpu().numpy()
            content = hashlib.sha256(repr((self.resized_size_hw, list(self.image_token_mask), pixels.shape, pixels.dtype.str)).encode())
            content.update(pixels.data)
            object.__setattr__(self, "key", content.hexdigest())

    @classmethod
    def from_image(cls, image: Image.Image, image_processor: PixelLMImageProcessor) -> "PhotoInput":
        """Any photo, through the processor."""
        inputs = image_processor.preprocess(image)
        resized_size_hw, photo_size_hw = (tuple(inputs[name][0].tolist()) for name in ("resized_sizes_hw", "photo_sizes_hw"))
        return cls(inputs["pixel_values"][0], resized_size_hw, photo_size_hw, image_processor.image_token_mask(resized_size_hw))


@dataclass(frozen=True, eq=False)
class Request:
    """One question about one photo.

    prompt_ids: the whole prompt, the image placeholder repeated I times in one run (`PixelLMProcessor.prompt_ids`).
    max_new_tokens: counts every token of a codebook group; a group that does not fit any more ends the answer (`length`).
    stop_token_ids: any of these ends the answer (`stop`) and is not part of it.
    is_finished: asked after each free token with all tokens of the answer; True ends it (`stop`). Runs in the engine's thread.
    max_targets: a group beyond it ends the answer (`max_targets`); None for no limit.
    sampler: chooses each free token; of this request alone, since it may hold a random state.
    client: requests of different clients take turns; those of one client are served in order.
    deadline_s: on the clock of `time.monotonic`; when it has passed, the request ends (`expired`).
    """

    photo: PhotoInput
    prompt_ids: Sequence[int]
    max_new_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    is_finished: Callable[[Sequence[int]], bool] | None = None
    max_targets: int | None = None
    sampler: Sampler = field(default_factory=Greedy)
    client: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True)
class TokenEvent:
    """The next tokens of the answer; a codebook group comes whole."""

    token_ids: list[int]


@dataclass(frozen=True, eq=False)
class MaskEvent:
    """The mask of the answer's target `index` (0, 1, …, in order): `mask_logits` (M, M) on the CPU, over the padded photo."""

    index: int
    mask_logits: Tensor


@dataclass(frozen=True)
class EndEvent:
    """The last event. `num_tokens` were given; `error` says why where the reason is `error`."""

    reason: EndReason
    num_tokens: int
    error: Exception | None = None


Event = TokenEvent | MaskEvent | EndEvent
