"""Where the parts of a dataset lie below its folder, as its publisher ships it, and which bytes they are."""

import hashlib
from collections.abc import Iterable, Mapping

from pixellm.errors import ConfigError
from pixellm.storage import exists, join_uri


def find_parts(dataset: str, input_uri: str, archives: str, parts: Mapping[str, str | tuple[str, ...]]) -> dict[str, str]:
    """The URI of each part. A tuple names the places below `input_uri` where it may lie, the first that exists counts; text is its URI.

    Raises one ConfigError that names every part that is missing, and `archives`, which hold them.
    """
    places = {name: [part] if isinstance(part, str) else [join_uri(input_uri, place) for place in part] for name, part in parts.items()}
    found = {name: next(filter(exists, uris), None) for name, uris in places.items()}
    missing = [f"{name} ({' or '.join(uris)})" for name, uris in places.items() if found[name] is None]
    if missing:
        raise ConfigError(f"{dataset}, input={input_uri}: missing are the {', the '.join(missing)}; they come with {archives}")
    return {name: uri for name, uri in found.items() if uri is not None}


def version_of(sizes: Mapping[str, int], *contents: bytes) -> str:
    """Names a folder of files by their names and sizes, and the `contents` of others."""
    lines: Iterable[str] = (f"{uri.rpartition('/')[2]} {size}\n" for uri, size in sorted(sizes.items()))
    digest = hashlib.sha256("".join(lines).encode())
    for content in contents:
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"
