"""A deployment: what `serve/configs/*.yaml` may say. Imports neither Ray nor torch."""

import ipaddress

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pixellm.photos import DEFAULT_LIMITS, PhotoLimits
from serve.fetch_config import FetchConfig, LabelStudioConfig
from serve.keys import ApiKey
from serve.model_config import ModelConfig


class AppConfig(ModelConfig):
    """A deployment: the model, its replicas and further models, the limits of a request, the address, who may ask."""

    app_name: str = Field(default="pixellm", min_length=1, description="name of the application on the cluster")
    more_models: tuple[ModelConfig, ...] = Field(default=(), description="more models behind the same address, each with replicas of its "
                                                 "own; a request names one of them in `model`, or gets the first")

    max_body_mb: PositiveFloat = Field(default=20, description="largest request body, in units of 1,000,000 bytes")
    max_megapixels: PositiveFloat = Field(default=DEFAULT_LIMITS.max_pixels / 1e6, description="largest photo, checked before it is "
                                          "decoded, like its side and its aspect ratio; by default what the library takes everywhere")
    max_photo_side: PositiveInt = Field(default=DEFAULT_LIMITS.max_side, description="longest side of a photo, in pixels")
    max_photo_aspect: float = Field(default=DEFAULT_LIMITS.max_aspect, ge=1, description="longer side over shorter side of a photo")
    max_megapixels_in_flight: PositiveFloat = Field(default=200, description="photos that an ingress replica holds decoded at a time, at "
                                                    "most 6 bytes a pixel; one more is 503")
    max_question_chars: PositiveInt = 2000
    max_questions: PositiveInt = Field(default=16, description="questions about one photo in one request")
    max_targets: PositiveInt = Field(default=64, description="masks of one answer, which ends before a further one")
    request_timeout_s: PositiveFloat = Field(default=60, description="for receiving a request, and again for answering it")
    ingress_replicas: PositiveInt = 1
    ingress_num_cpus: float = Field(default=0, ge=0, description="logical CPUs of an ingress replica, which decodes the photos")

    host: str = Field(default="127.0.0.1", description="loopback; 0.0.0.0 opens the server to the network, which needs api_keys")
    port: int = Field(default=8000, ge=1, le=65535)
    tls_certificate: str | None = Field(default=None, description="PEM file of the certificate chain, on every node; the server is then "
                                        "https")
    tls_key: str | None = Field(default=None, description="PEM file of the certificate's key")
    api_keys: tuple[ApiKey, ...] = Field(default=(), description="who may ask; `pixellm key NAME` makes one. Without any the server "
                                         "answers to its own machine only")
    allow_cluster_without_token: bool = Field(default=False, description="serve also on a Ray cluster that asks for no token, where anyone "
                                              "who reaches a node can run code: only in a network that nothing but the cluster reaches")
    cors_origins: tuple[str, ...] = Field(default=(), description="origins whose pages may ask from a browser, such as "
                                          "https://photos.example.com; those of this server always may")
    allowed_hosts: tuple[str, ...] = Field(default=(), description="names besides localhost and loopback addresses by which a server "
                                           "without api_keys may be asked, such as that of a proxy on this machine")
    fetch: FetchConfig | None = Field(default=None, description="fetch photos from https URLs that requests name; left out, none is")

    label_studio: LabelStudioConfig | None = Field(default=None, description="read photos that lie in this Label Studio server")

    @model_validator(mode="after")
    def _check_together(self) -> "AppConfig":
        names = [model.model_name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"more than one model is called {max(names, key=names.count)}; give each a name of its own")
        if not self.is_loopback and not self.api_keys:
            raise ValueError(f"host is {self.host}, which others can reach, and there are no api_keys: make one with `pixellm key NAME`, "
                             "or listen on 127.0.0.1")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together; give both or none")
        for field in ("name", "sha256"):
            given = [getattr(key, field) for key in self.api_keys]
            if len(set(given)) < len(given):
                raise ValueError(f"api_keys holds the {field} {max(given, key=given.count)} twice; each key has its own")
        if "*" in self.cors_origins:
            raise ValueError("cors_origins has *, which is every page of the web; name the origins")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # another name
            return False

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """All of them, the one that is asked when none is named first."""
        return (self, *self.more_models)

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1_000_000)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1_000_000)

    @property
    def photo_limits(self) -> PhotoLimits:
        """Limits that a photo is held against before it is decoded."""
        return PhotoLimits(self.max_pixels, self.max_photo_side, self.max_photo_aspect)
