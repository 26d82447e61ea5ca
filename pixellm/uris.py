"""Types of configuration fields that name a place. Each is checked and made absolute where the configuration is read, once.

Workers run in folders of their own, so a relative path that reached one would mean another place there.
"""

from typing import Annotated

from pydantic import AfterValidator

from pixellm.errors import StorageError
from pixellm.storage import absolute_uri

MODEL_NAMES = ("tiny", "tiny-random", "7b", "13b")


def _to_absolute(uri: str) -> str:
    try:
        return absolute_uri(uri)
    except StorageError as error:
        raise ValueError(str(error)) from None  # pydantic collects ValueErrors, with the key that has the value


def _to_absolute_model(model: str) -> str:
    return model if model in MODEL_NAMES else _to_absolute(model)


Uri = Annotated[str, AfterValidator(_to_absolute)]
ModelUri = Annotated[str, AfterValidator(_to_absolute_model)]  # one of MODEL_NAMES stays that name
