"""How questions are answered: what the engine holds, what every caller of it says, what batch jobs say. Needs neither torch nor Ray."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from pixellm.settings import StrictModel
from pixellm.uris import ModelUri


class EngineConfig(StrictModel):
    """How much the engine holds, and how much it does in one step.

    None of it changes an answer in float32; in bfloat16 near ties may fall otherwise.
    """

    num_slots: int = Field(default=16, gt=0, description="answers that are written at the same time; fewer where kv_cache_mb holds fewer")
    slot_tokens: int = Field(default=1024, gt=0, description="longest prompt and answer together, in tokens that are not hidden; "
                             "the model's positions where those are fewer")
    kv_cache_mb: float = Field(default=4300, gt=0, description="keys and values of all slots, in units of 1,000,000 bytes. A slot takes 2 "
                               "x layers x key heads x head width x bytes of a number x slot_tokens: for 7b in bfloat16 "
                               "2 x 32 x 32 x 128 x 2 x 1024 = 537 MB, so 8 slots; 13b 839 MB, 5 slots; float32 twice that")
    max_rows_per_step: int = Field(default=512, gt=0, description="rows of one forward: running answers first, then prompts")
    photo_cache_mb: float = Field(default=1024, gt=0, description="in units of 1,000,000 bytes; least recently used out first")
    max_photos_per_step: int = Field(default=1, gt=0, description="photos of one vision pass; on a CPU, more only make others wait")
    max_masks_per_step: int = Field(default=4, gt=0, description="masks decoded together, as max_photos_per_step")


class InferenceConfig(StrictModel):
    """A model that answers questions, wherever it runs: in batch jobs and in a deployment."""

    model: ModelUri = Field("tiny", min_length=1, description="path or URI of a model directory, or tiny for the one that ships")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    int8_weights: bool = Field(False, description="the language model's layers in 8 bits: half of bfloat16's memory, but slower")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N")
    torch_threads: int | None = Field(None, gt=0, description="CPU threads of each copy of the model; Ray's choice when unset")
    max_new_tokens: int = Field(128, gt=0, description="longest answer")
    engine: EngineConfig = EngineConfig()


class BatchConfig(InferenceConfig):
    """A model that answers many photos, on Ray Data actors with a copy each."""

    batch_size: int = Field(8, gt=0, description="photos in one call of the model, with all their questions")
    num_workers: int = Field(1, gt=0, description="copies of the model")
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    resource_wait_s: float = Field(1800, gt=0, description="how long the job waits for nodes that have what a worker asks for")
    max_failed_share: float = Field(0.05, ge=0, le=1, description="above it, of the photos, the job fails after everything is written")


class Turn(NamedTuple):
    """A question that was answered; `answer` has `{seg}` after each phrase that named a mask."""

    question: str
    answer: str


ANY_SEED = -1


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer. `temperature` None is greedy; else tokens are drawn, and the same `seed` (int64) draws the same answer in any company
    (in float32; in bfloat16 near ties may fall otherwise). `ANY_SEED` draws anew each time.

    The answer ends before the first of the `stop` strings, before a target beyond `max_targets`, and with DeadlineError after `timeout_s`.
    Questions of different `client`s take turns. `history` is what was said before about the photo, in order.
    """

    max_targets: int | None = None
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    client: str = ""
    history: tuple[Turn, ...] = ()
