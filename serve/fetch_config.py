"""Whether and how far the server fetches photos from URLs. Imports neither Ray nor torch."""

from pydantic import Field, PositiveFloat

from pixellm.settings import StrictModel


class FetchConfig(StrictModel):
    """Photos by URL: https on port 443 only, and public addresses only (see `serve/fetch.py`). The largest is `max_body_mb`."""

    timeout_s: PositiveFloat = Field(default=10, description="for one photo, redirects included")
    max_redirects: int = Field(default=3, ge=0)
    hosts: tuple[str, ...] = Field(default=(), description="the only hosts that are asked, exact names; empty: any")
