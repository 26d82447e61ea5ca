"""The engine's settings."""

from pydantic import Field

from pixellm.settings import StrictModel


class EngineConfig(StrictModel):
    """How much the engine holds, and how much it does in one step.

    None of it changes an answer in float32; in bfloat16 near ties may fall otherwise.
    """

    num_slots: int = Field(default=16, gt=0, description="answers that are written at the same time")
    slot_tokens: int = Field(default=2048, gt=0, description="longest prompt and answer together, in tokens that are not hidden; "
                             "the model's positions where those are fewer")
    max_rows_per_step: int = Field(default=512, gt=0, description="rows of one forward: running answers first, then prompts")
    photo_cache_mb: float = Field(default=1024, gt=0, description="in units of 1,000,000 bytes; least recently used out first")
    max_photos_per_step: int = Field(default=1, gt=0, description="photos of one vision pass; on a CPU, more only make others wait")
    max_masks_per_step: int = Field(default=4, gt=0, description="masks decoded together, as max_photos_per_step")
