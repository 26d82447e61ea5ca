"""`manifest.json`: what a shard folder holds. It is written last, so a folder without one is not complete and is refused."""

import json

from pydantic import Field, ValidationError

from pixellm.errors import ShardError, StorageError
from pixellm.settings import StrictModel
from pixellm.storage import exists, join_uri, open_filesystem, read_bytes, write_bytes

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


class ShardInfo(StrictModel):
    """One Parquet file of the folder. `sha256` is of the file."""

    name: str
    num_rows: int
    num_bytes: int
    sha256: str


class SourceInfo(StrictModel):
    """Where the rows come from: the source's name, its configuration, and what names the version of its data."""

    name: str
    version: str
    settings: dict = Field(default_factory=dict)


class Manifest(StrictModel):
    """Totals, the shards in their order, and the sources. Rejected annotations belong to photos that were kept."""

    format_version: int = FORMAT_VERSION
    num_rows: int
    num_regions: int
    num_conversations: int
    num_targets: int
    num_bytes: int
    num_rejected_rows: int
    num_rejected_annotations: int
    rejected_by_reason: dict[str, int]
    seed: int
    sources: list[SourceInfo]
    shards: list[ShardInfo]

    def shard_uris(self, uri: str) -> list[str]:
        """URIs of the shards below the folder `uri`, in their order."""
        return [join_uri(uri, shard.name) for shard in self.shards]


def write_manifest(uri: str, manifest: Manifest) -> None:
    """Write it into the folder `uri`."""
    write_bytes(join_uri(uri, MANIFEST_NAME), (json.dumps(manifest.model_dump(), indent=2) + "\n").encode())


def read_manifest(uri: str) -> Manifest:
    """The manifest of the shard folder `uri`, after a look whether each shard is there with its size (checksums: `verify_checksums`).

    Raises ShardError for a folder without a manifest, one that is not ours, and a shard that is missing or has another size.
    """
    location = join_uri(uri, MANIFEST_NAME)
    if not exists(location):
        raise ShardError(f"{uri} has no {MANIFEST_NAME}: it is no shard folder, or its job did not finish; "
                         f"run jobs.prepare_data with output={uri}")
    try:
        manifest = Manifest.model_validate_json(read_bytes(location))
    except ValidationError as error:
        raise ShardError(f"{location} is not a manifest of ours: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    if manifest.format_version != FORMAT_VERSION:
        raise ShardError(f"{location} has format version {manifest.format_version}, this program reads {FORMAT_VERSION}; "
                         "prepare the data again")
    filesystem, path = open_filesystem(uri)
    try:
        infos = filesystem.get_file_info([f"{path}/{shard.name}" for shard in manifest.shards])
    except OSError as error:
        raise StorageError(f"cannot look at the shards of {uri}: {error}") from error
    for shard, info in zip(manifest.shards, infos, strict=True):
        if info.size != shard.num_bytes:
            found = "is missing" if info.size is None else f"has {info.size} bytes"
            raise ShardError(f"{join_uri(uri, shard.name)} {found}, the manifest says {shard.num_bytes} bytes; prepare the data again")
    return manifest
