"""All photos of a shard folder to a shard folder of questions about them, with Ray Data, an actor for some shards at a time.

A run that was killed, or that had to stop, is started again with the same configuration: shards that were finished are kept, and for the
others every answer that was paid is in the cache.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.data

from pixellm.curation.budget import Budget, StageCosts
from pixellm.curation.client import read_api_key
from pixellm.curation.config import CurateConfig
from pixellm.curation.prompts import prompts_of
from pixellm.curation.report import Report, cost_lines, write_page
from pixellm.curation.worker import ENDPOINT_FAILED, ShardCurator, read_extras
from pixellm.data.manifest import Manifest, SourceInfo, read_manifest
from pixellm.data.parts import Counts, ShardOptions
from pixellm.data.progress import watch_progress
from pixellm.data.shards import ShardNote, folder_name, publish, read_notes
from pixellm.revision import git_revision
from pixellm.storage import join_uri, open_output, write_bytes

_OF_ENDPOINT = {"model", "temperature", "max_output_tokens"}
DECIDING: Any = {"pipeline": True, "split": True, "questions_per_photo": True, "max_photos": True, "max_listed": True, "photo_side": True,
                 "max_similarity": True, "vision": _OF_ENDPOINT, "language": _OF_ENDPOINT}  # the settings that the questions depend on
WORKER_CPUS = 0.5  # it waits more than it computes
REJECTED_QUESTIONS = "rejected_questions.jsonl"


def curate(config: CurateConfig, say: Callable[[str], None]) -> Report:
    """Ask, check and write everything below `config.output`; `say` gets progress and costs. Joins the Ray cluster, or starts one.

    Raises ConfigError (no key), ShardError (no shards), SpendingCapError, ServerError `endpoint_refused` and StorageError, after all that
    was on its way has arrived; TooManyRejectedError at the end, when everything but the manifest is written.
    """
    for endpoint in config.endpoints().values():
        read_api_key(endpoint)
    manifest = read_manifest(config.shards)
    tasks = plan_shards(config, manifest)
    settings = config.model_dump(include=DECIDING)
    folder = folder_name([git_revision(), settings, prompts_of(config.pipeline), [shard.sha256 for shard in manifest.shards]], [])
    kept = {number: note for number, note in read_notes(config.output, folder).items()
            if all(each.reason != ENDPOINT_FAILED for each in note.rejected)}
    notes, costs, error = _run(config, folder, [task for task in tasks if task["number"] not in kept])
    for line in cost_lines(costs):
        say(line)
    notes |= kept
    if error:
        say(f"{len(notes)} of {len(tasks)} shards are finished; start the same job again to go on: what is paid is in {config.cache}")
        raise error
    ordered = [notes[number] for number in sorted(notes)]
    report = Report(config, sum((note.counts for note in ordered), Counts()), costs, len(kept))
    _gather(report, folder, sorted(notes))
    made = report.to_dict()
    write_bytes(join_uri(config.output, "curation.json"), (json.dumps(made, indent=2) + "\n").encode())
    origin = SourceInfo(name=f"curated_{config.pipeline}", version=folder.removeprefix("shards-"),
                        settings={name: made[name] for name in ("created", "git_revision", "models", "prompts", "settings")})
    options = ShardOptions.model_validate({"max_rejected_share": config.max_rejected_share, "seed": manifest.seed})
    publish(config.output, folder, ordered, [], options, [origin])
    say(f"quality page at {write_page(report)}")
    return report


def plan_shards(config: CurateConfig, manifest: Manifest) -> list[dict[str, Any]]:
    """The shards that are needed for `max_photos`, and how many rows of each."""
    tasks, left = [], config.max_photos or manifest.num_rows
    for number, (shard, uri) in enumerate(zip(manifest.shards, manifest.shard_uris(config.shards), strict=True)):
        if left > 0:
            tasks.append({"number": number, "uri": uri, "num_rows": min(left, shard.num_rows)})
            left -= shard.num_rows
    return tasks


def _run(config: CurateConfig, folder: str, tasks: Sequence[dict[str, Any]]
         ) -> tuple[dict[int, ShardNote], dict[str, StageCosts], Exception | None]:
    """The notes of the shards that could be finished, what it cost, and why others could not."""
    if not tasks:
        return {}, {}, None
    num_workers = min(config.num_workers, len(tasks), *(endpoint.max_concurrency for endpoint in config.endpoints().values()))
    budget: Any = ray.remote(num_cpus=0)(Budget).remote(config.endpoints(), config.max_cost)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        shards = ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
            ShardCurator, batch_size=1, num_cpus=WORKER_CPUS, compute=ray.data.ActorPoolStrategy(size=num_workers),
            fn_constructor_args=[config, folder, num_workers, budget])
        num_photos = sum(task["num_rows"] for task in tasks)
        with watch_progress("curate: photos", num_photos, lambda: ray.get(budget.num_done.remote())):
            rows = list(shards.iter_rows())
    notes = {row["number"]: ShardNote.model_validate_json(row["note"]) for row in rows if row["note"]}
    errors = [pickle.loads(row["error"]) for row in rows if row["error"]]
    return notes, ray.get(budget.costs.remote()), errors[0] if errors else None


def _gather(report: Report, folder: str, numbers: Sequence[int]) -> None:
    """Write the MUSE file and what was rejected, a shard at a time, and count both."""
    config, begun = report.config, False
    with open_output(join_uri(config.output, f"muse_{config.split}.json")) as muse, \
            open_output(join_uri(config.output, REJECTED_QUESTIONS)) as rejected:
        muse.write(b"[")
        for number in numbers:
            extras = read_extras(config.output, folder, number)
            report.add(extras)
            for entry in extras.entries:
                muse.write((b",\n" if begun else b"\n") + bytes(entry))
                begun = True
            rejected.write("".join(json.dumps(each) + "\n" for each in extras.rejected).encode())
        muse.write(b"\n]\n")
