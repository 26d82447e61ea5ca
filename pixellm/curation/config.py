"""What a curation is told: which endpoints it may ask, how fast and for how much, and where its data come from and go."""

from pydantic import Field

from pixellm.settings import StrictModel


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
