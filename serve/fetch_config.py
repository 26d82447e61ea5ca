"""Servers from which photos are read that a request only names. Imports neither Ray nor torch."""

from pydantic import Field, PositiveFloat

from pixellm.settings import StrictModel


class FetchConfig(StrictModel):
    """Photos by URL: https on port 443 only, and public addresses only (see `serve/fetch.py`). The largest is `max_body_mb`."""

    timeout_s: PositiveFloat = Field(default=10, description="for one photo, redirects included")
    max_redirects: int = Field(default=3, ge=0)
    hosts: tuple[str, ...] = Field(default=(), description="the only hosts that are asked, exact names; empty: any")


class LabelStudioConfig(StrictModel):
    """The Label Studio server whose tasks this one answers."""

    url: str = Field(pattern=r"^https?://[^/?#@]+(/[^?#]*)?$", description="address of the server, such as https://labels.example.com")
    token_env: str = Field(default="LABEL_STUDIO_API_KEY", description="environment variable, on the nodes that serve, with its token")
    timeout_s: float = Field(default=20, gt=0, description="for one photo")
