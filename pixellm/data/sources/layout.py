"""Finds the files of a dataset where its publisher's archive puts them, and says all that is missing at once."""

from collections.abc import Mapping, Sequence

from pixellm.errors import ConfigError
from pixellm.storage import exists


def find_parts(dataset: str, archive: str, parts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each part of the dataset the first of its URIs, files or folders, that exists.

    Raises ConfigError that names every part that has none, with all places that were looked at; `archive` says where they come from.
    """
    found = {part: next(filter(exists, uris), None) for part, uris in parts.items()}
    missing = [f"{part} (looked for {', '.join(parts[part])})" for part, uri in found.items() if uri is None]
    if missing:
        raise ConfigError(f"{dataset} is not complete, missing: {'; '.join(missing)}. It comes as {archive}")
    return {part: uri for part, uri in found.items() if uri is not None}
