"""What a curation is told: which endpoints it may ask, how fast and for how much, and where its data come from and go."""

from typing import Literal

from pydantic import Field, model_validator

from pixellm.curation.proposals import MAX_SIMILARITY
from pixellm.settings import StrictModel
from pixellm.uris import Uri


class EndpointConfig(StrictModel):
    """A model behind OpenAI's chat completions protocol. Prices are in any currency, per million tokens; 0: a model of one's own."""

    url: str = Field(pattern="^https?://", description="up to the version, such as http://127.0.0.1:8000/v1")
    model: str = Field(min_length=1)
    api_key_env: str | None = Field("OPENAI_API_KEY", description="environment variable, on all nodes, with the key; none: no key is sent")
    max_concurrency: int = Field(32, gt=0, description="requests at a time, of all workers together")
    requests_per_minute: int | None = Field(None, gt=0, description="of all workers together; none: no limit")
    tokens_per_minute: int | None = Field(None, gt=0, description="in and out, of all workers together; none: no limit")
    request_timeout_s: float = Field(120, gt=0, description="of one attempt")
    total_timeout_s: float = Field(900, gt=0, description="of a request with all its attempts; waiting for the limits above is not counted")
    max_output_tokens: int = Field(1024, gt=0)
    temperature: float = Field(0.7, ge=0)
    image_tokens: int = Field(1200, ge=0, description="at most so many for a photo; only for estimates")
    price_per_million_input: float = Field(0, ge=0)
    price_per_million_output: float = Field(0, ge=0)

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """In the currency of the prices."""
        return (input_tokens * self.price_per_million_input + output_tokens * self.price_per_million_output) / 1e6


class CurateConfig(StrictModel):
    """Questions about the photos of `shards`. Everything but `cache` is below `output`."""

    shards: Uri = Field(description="shard folder with the annotated photos, such as jobs.prepare_data writes")
    output: Uri = Field(description="URI of the folder for the questions: shards, muse_SPLIT.json, what was rejected, the quality page")
    cache: Uri = Field(description="URI of the folder of answers that were paid; one for all runs, so that none pays again")
    pipeline: Literal["v1", "v2"] = Field(description="v1: a caption, then questions from it; v2: questions from the photo in one go")
    split: Literal["train", "val", "test_less", "test_many"] = "train"
    vision: EndpointConfig = Field(description="sees the photos")
    language: EndpointConfig | None = Field(None, description="of v1: writes questions from the captions")
    questions_per_photo: int = Field(3, gt=0)
    max_photos: int | None = Field(None, gt=0, description="only so many, the first of the shards")
    max_listed: int = Field(40, ge=2, description="a photo's largest instances are told to the model, at most so many")
    photo_side: int = Field(768, gt=0, description="longer side of what the model sees, in pixels")
    max_similarity: float = Field(MAX_SIMILARITY, gt=0, description="of two questions about a photo: Jaccard index of their word pairs")
    max_cost: float | None = Field(None, ge=0, description="of this run, in the currency of the prices; what is in the cache costs nothing")
    max_rejected_share: float = Field(0.2, ge=0, le=1, description="of photos without a question; above it the job ends with an error")
    num_workers: int = Field(2, gt=0, description="processes, each for a shard at a time")
    num_examples: int = Field(12, ge=0, description="photos on the quality page")
    dry_run: bool = Field(False, description="say what it would cost at most, ask nothing and write nothing")

    @model_validator(mode="after")
    def _endpoints_fit(self) -> "CurateConfig":
        if (self.pipeline == "v1") != (self.language is not None):
            raise ValueError("language: pipeline=v1 needs it, pipeline=v2 has no use for it")
        return self

    def endpoints(self) -> dict[str, EndpointConfig]:
        """By name."""
        return {"vision": self.vision} | ({"language": self.language} if self.language else {})

    def endpoint_of(self, stage: str) -> str:
        """The name of the endpoint that a stage asks."""
        return "language" if self.language and stage != "caption" else "vision"
