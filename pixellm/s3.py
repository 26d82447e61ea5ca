"""One set of S3 settings for both clients, pyarrow's and boto3's: what botocore reads from the environment and the profile.

Endpoint: AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL, else `endpoint_url` of the profile (AWS_PROFILE); none of them with
AWS_IGNORE_CONFIGURED_ENDPOINT_URLS=true. Region: AWS_REGION, else AWS_DEFAULT_REGION, else the profile's. pyarrow reads fewer of these by
itself, so only this module builds an S3FileSystem.
"""

import functools
import os
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from pixellm.errors import StorageError

NUM_ATTEMPTS = 5
NUM_CONNECTIONS = 8
CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0
# Roles of a machine, a container or a pod: pyarrow's own SDK finds the same ones and renews their keys for as long as a run lasts.
ROLE_METHODS = frozenset({"iam-role", "container-role", "assume-role-with-web-identity"})


@dataclass(frozen=True)
class S3Settings:
    """The place of the store, and the signing of requests. `endpoint` None is AWS; keys None are left to the AWS SDK's default chain."""

    endpoint: str | None
    region: str | None
    ca_bundle: str | None = None
    virtual_addressing: bool = False
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None


def read_s3_settings() -> S3Settings:
    """The settings of this moment: keys that expire (an assumed role, SSO) are renewed in time. Raises StorageError."""
    from botocore.exceptions import BotoCoreError

    _, credentials, settings = _read_environment(_environment())
    if credentials is None or credentials.method in ROLE_METHODS:
        return settings
    try:
        keys = credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise StorageError(f"cannot renew the AWS credentials: {error}; log in again, or set the AWS_* variables") from None
    return replace(settings, access_key=keys.access_key, secret_key=keys.secret_key, session_token=keys.token)


def arrow_filesystem() -> pafs.S3FileSystem:
    """pyarrow's client; the same object for the same settings. Raises StorageError."""
    return _build_filesystem(read_s3_settings())


def boto3_client() -> Any:
    """botocore's client, which boto3's transfers take. Raises StorageError."""
    from botocore.config import Config

    session, _, settings = _read_environment(_environment())
    return session.create_client("s3", region_name=settings.region or "us-east-1", config=Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=REQUEST_TIMEOUT_S, max_pool_connections=NUM_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": NUM_ATTEMPTS}))


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.lru_cache(maxsize=8)
def _read_environment(environment: tuple[tuple[str, str], ...]) -> tuple[Any, Any, S3Settings]:
    """botocore's session, its credentials (None where it finds none), and the settings without keys."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.get_session()
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
        # The public way to ask for a configured endpoint: it is what makes these two differ.
        clients = [session.create_client("s3", region_name=region or "us-east-1", config=Config(
            signature_version=UNSIGNED, ignore_configured_endpoint_urls=ignored)) for ignored in (None, True)]
        endpoint, default = (client.meta.endpoint_url for client in clients)
        settings = S3Settings(None if endpoint == default else endpoint, region, session.get_config_variable("ca_bundle"),
                              (clients[0].meta.config.s3 or {}).get("addressing_style") == "virtual")
        return session, session.get_credentials(), settings
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint without its scheme
        raise StorageError(f"the AWS settings cannot be used: {error}; correct the AWS_* variables or the profile "
                           "(an endpoint is written http://host:port or https://host)") from None


@functools.lru_cache(maxsize=8)
def _build_filesystem(settings: S3Settings) -> pafs.S3FileSystem:
    options: dict[str, Any] = {}
    if settings.access_key and settings.secret_key:
        options |= {"access_key": settings.access_key, "secret_key": settings.secret_key, "session_token": settings.session_token}
    if settings.endpoint:
        parts = urlsplit(settings.endpoint)
        options |= {"endpoint_override": parts.netloc + parts.path.rstrip("/"), "scheme": parts.scheme}
    if settings.region or settings.endpoint:
        options["region"] = settings.region or "us-east-1"  # a store of our own takes any; without one pyarrow asks AWS over the network
    return pafs.S3FileSystem(
        **options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=NUM_ATTEMPTS), connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S, force_virtual_addressing=settings.virtual_addressing, tls_ca_file_path=settings.ca_bundle)
