"""One photo and one question out of a shard folder, for demonstrations."""

import pyarrow.parquet as pq

from pixellm.data.manifest import read_manifest
from pixellm.data.prompts import fill_conversation
from pixellm.errors import ShardError
from pixellm.storage import open_filesystem


def read_example(uri: str) -> tuple[bytes, str]:
    """The encoded photo and the question of the first conversation that has two or more targets, or else of the first one.

    Looks at the first row group of the shard folder `uri` only. Raises ShardError if there is no question in it.
    """
    shards = read_manifest(uri).shard_uris(uri)
    if not shards:
        raise ShardError(f"{uri} has no shards")
    filesystem, path = open_filesystem(shards[0])
    with filesystem.open_input_file(path) as file:
        rows = pq.ParquetFile(file).read_row_group(0, columns=["image", "regions", "conversations"]).to_pylist()
    examples = [(row, conversation) for row in rows for conversation in row["conversations"]]
    if not examples:
        raise ShardError(f"{uri} has no question in its first row group")
    row, conversation = next((example for example in examples if len(example[1]["targets"]) > 1), examples[0])
    return row["image"], fill_conversation(conversation, row["regions"], seed_key="example")[0]
