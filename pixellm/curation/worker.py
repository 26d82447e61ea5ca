"""The questions of one shard, in a Ray Data actor: as many photos at a time as keep the endpoints busy.

Beside the new shard lie its note (see data/shards.py) and, written before it, what else came of it: the MUSE entries and what was rejected.
A photo that the endpoint failed on is noted as `endpoint_failed`; a shard with such photos is made again by the next run, out of the cache.
"""

import asyncio
import pickle
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pyarrow.parquet as pq

from pixellm.curation.budget import of_actor
from pixellm.curation.client import ChatClient
from pixellm.curation.config import CurateConfig
from pixellm.curation.muse_form import to_entry, to_rows
from pixellm.curation.pipelines import Curation, PhotoCurator
from pixellm.data.parts import Part, RowCollector
from pixellm.data.schema import RejectedRow, Row
from pixellm.data.shards import write_shard
from pixellm.errors import PixelLMError, RowError, ServerError
from pixellm.storage import join_uri, open_filesystem, read_bytes, write_bytes

ENDPOINT_FAILED = "endpoint_failed"


class ShardExtras(msgspec.Struct):
    """What a shard has no column for. `accepted`: the number of questions by stage of the answer that they were in; `used`: for each stage
    the number of answers that were needed, their tokens in, and out."""

    entries: list[msgspec.Raw] = []
    rejected: list[dict[str, Any]] = []
    accepted: dict[str, int] = {}
    used: dict[str, list[int]] = {}


def extras_uri(output: str, folder: str, number: int) -> str:
    """Where the extras of a shard are."""
    return join_uri(output, folder, f"shard-{number:05d}.extras.json")


def read_extras(output: str, folder: str, number: int) -> ShardExtras:
    """Of a shard that has its note."""
    return msgspec.json.decode(read_bytes(extras_uri(output, folder, number)), type=ShardExtras)


class ShardCurator:
    """Called by Ray Data with batches of one shard: `number`, `uri`, and `num_rows`, which of its first rows are wanted.

    `budget` is the actor of the `Budget`. The result has the shard's `note` as JSON; where nothing may be asked any more it has the pickled
    `error` instead, and nothing is written.
    """

    def __init__(self, config: CurateConfig, folder: str, num_workers: int, budget: Any):
        self._config, self._folder, self._num_workers, self._budget = config, folder, num_workers, of_actor(budget)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number, uri, num_rows = (batch[name][0] for name in ("number", "uri", "num_rows"))
        note, error = "", b""
        try:
            note = asyncio.run(self._curate_shard(int(number), str(uri), int(num_rows)))
        except PixelLMError as raised:  # not passed on to Ray Data, which would end the actors whose answers are on their way
            error = pickle.dumps(raised)
        return {"number": [number], "note": [note], "error": [error]}

    async def _curate_shard(self, number: int, uri: str, num_rows: int) -> str:
        groups = read_row_groups(uri, num_rows)
        shares = {name: endpoint.max_concurrency // self._num_workers for name, endpoint in self._config.endpoints().items()}
        at_a_time = asyncio.Semaphore(2 * sum(shares.values()))  # not all: photo by photo, a cap leaves few that are half done
        async with AsyncExitStack() as stack:
            clients = {name: await stack.enter_async_context(
                ChatClient(endpoint, name, self._budget, self._config.cache, shares[name]))
                for name, endpoint in self._config.endpoints().items()}
            curator = PhotoCurator(self._config, clients)
            rows = [row for group in groups for row in group]
            found = await asyncio.gather(*(self._curate_photo(curator, row, at_a_time) for row in rows), return_exceptions=True)
        if error := next((each for each in found if isinstance(each, BaseException)), None):
            raise error  # after all that was on its way has arrived, and is in the cache
        outcomes, extras = iter(found), ShardExtras()
        parts = [self._build_part(group, outcomes, extras) for group in groups]
        write_bytes(extras_uri(self._config.output, self._folder, number), msgspec.json.encode(extras))
        return write_shard(parts, self._config.output, self._folder, number).model_dump_json()

    async def _curate_photo(self, curator: PhotoCurator, row: Row, at_a_time: asyncio.Semaphore) -> Curation | RejectedRow:
        try:
            async with at_a_time:
                return await curator.curate(row)
        except RowError as error:
            return RejectedRow(row["image_id"], row["source"], error.reason, error.detail)
        except ServerError as error:
            if error.code == "endpoint_refused":
                raise
            return RejectedRow(row["image_id"], row["source"], error.code, error.detail)
        finally:
            await self._budget("count_done", 1)

    def _build_part(self, group: list[Row], outcomes: Iterator[Any], extras: ShardExtras) -> Part:
        """A row group of the new shard, from one of the old; `outcomes` goes on behind it."""
        collector = RowCollector()
        for row, outcome in zip(group, outcomes, strict=False):
            if isinstance(outcome, RejectedRow):
                collector.add(outcome)
                continue
            extras.rejected += outcome.rejected
            for completion in outcome.completions:
                one = (1, completion.input_tokens, completion.output_tokens)
                so_far = extras.used.get(completion.stage, [0, 0, 0])
                extras.used[completion.stage] = [a + b for a, b in zip(so_far, one, strict=True)]
            for _, completion in outcome.accepted:
                extras.accepted[completion.stage] = extras.accepted.get(completion.stage, 0) + 1
            if not outcome.accepted:
                detail = f"none of its {len(outcome.rejected)} questions can be used"
                collector.add(RejectedRow(row["image_id"], row["source"], "no_question", detail))
                continue
            entry = to_entry(row, outcome)
            extras.entries.append(msgspec.Raw(msgspec.json.encode(entry)))
            for built in to_rows(entry, row, f"curated_{self._config.pipeline}", self._config.split):
                collector.add(built)
        return collector.to_part()


def read_row_groups(uri: str, num_rows: int) -> list[list[Row]]:
    """The first `num_rows` rows of a shard."""
    filesystem, path = open_filesystem(uri)
    groups: list[list[Row]] = []
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        for index in range(file.num_row_groups):
            if left := num_rows - sum(map(len, groups)):
                groups.append(file.read_row_group(index).to_pylist()[:left])
    return groups
