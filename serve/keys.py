"""API keys: who may ask, how much, and until when. A deployment holds their SHA-256 only: keys are random, so no more than that is needed.

    pixellm key alice      # prints a new key once, and the entry for the deployment's YAML
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import AwareDatetime, Field, PositiveFloat, PositiveInt

from pixellm.settings import StrictModel, build_config

PREFIX = "pxl_"
MAX_CONCURRENT = 32  # of a key that `make_key` makes


class ApiKey(StrictModel):
    """One key. Its limits are counted by each ingress replica for itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="who has it; the engine lets different names take turns")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key, in lower-case hex")
    requests_per_minute: PositiveFloat | None = Field(default=None, description="in the long run; without it there is no such limit")
    burst: PositiveInt = Field(default=10, description="requests that may come at once where requests_per_minute is set")
    max_concurrent: PositiveInt | None = Field(default=None, description="requests on their way at the same time")
    expires: AwareDatetime | None = Field(default=None, description="such as 2027-01-01T00:00:00Z; after it the key is refused")

    def is_expired(self, now: datetime) -> bool:
        return self.expires is not None and now >= self.expires


def hash_key(key: str) -> str:
    """What a deployment keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def make_key(name: str) -> tuple[str, ApiKey]:
    """A new key of 256 random bits, and its entry. Raises ConfigError for a name that cannot be one."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, build_config(ApiKey, {"name": name, "sha256": hash_key(key), "max_concurrent": MAX_CONCURRENT}, where="API key")


def find_key(given: str, keys: Sequence[ApiKey]) -> ApiKey | None:
    """The entry of a key, if there is one. Takes the same time wherever it is, and whether it is there."""
    digest = hash_key(given)
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.sha256):
            found = key
    return found


def utc_now() -> datetime:
    return datetime.now(UTC)
