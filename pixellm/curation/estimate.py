"""What a curation would cost, before anything is asked: the requests of a sample are made, counted, and multiplied."""

from dataclasses import dataclass

from pixellm.curation.config import CurateConfig
from pixellm.curation.pipelines import caption_request, list_instances, question_request, repair_request
from pixellm.curation.proposals import MIN_TARGETS
from pixellm.curation.worker import read_row_groups
from pixellm.data.manifest import read_manifest

NUM_SAMPLES = 64


@dataclass(frozen=True)
class StageEstimate:
    """At most so many requests and tokens: every answer as long as `max_output_tokens` allows, every photo repaired."""

    stage: str
    num_requests: int
    input_tokens: int
    output_tokens: int
    cost: float


def estimate(config: CurateConfig) -> list[StageEstimate]:
    """By stage. Raises ShardError for what is no shard folder."""
    manifest = read_manifest(config.shards)
    num_photos = min(manifest.num_rows, config.max_photos or manifest.num_rows)
    (samples, *_) = read_row_groups(manifest.shard_uris(config.shards)[0], NUM_SAMPLES)  # rows are shuffled
    requests = []
    for row in samples:
        listed = list_instances(row, config.max_listed)
        if len(listed) < MIN_TARGETS:
            continue
        if config.pipeline == "v1":
            requests.append(caption_request(row, config))
        longest = {stage: 3 * config.endpoints()[config.endpoint_of(stage)].max_output_tokens * "x" for stage in ("caption", "questions")}
        requests.append(question_request(row, listed, config, longest["caption"] if config.pipeline == "v1" else ""))
        requests.append(repair_request(requests[-1], longest["questions"], [], config.questions_per_photo))
    found = []
    for stage in dict.fromkeys(each.stage for each in requests):
        endpoint, of_stage = config.endpoints()[config.endpoint_of(stage)], [each for each in requests if each.stage == stage]
        times = num_photos / len(samples)
        num_requests = round(times * len(of_stage))
        tokens = round(times * sum(each.input_tokens(endpoint) for each in of_stage)), num_requests * endpoint.max_output_tokens
        found.append(StageEstimate(stage, num_requests, *tokens, endpoint.cost(*tokens)))
    return found


def estimate_lines(config: CurateConfig, found: list[StageEstimate]) -> list[str]:
    """For people."""
    lines = [f"{'stage':<12}{'requests':>10}{'tokens in':>14}{'tokens out':>14}{'cost':>12}   at most: every answer of full length"]
    total = StageEstimate("all", *(sum(getattr(each, name) for each in found)
                                   for name in ("num_requests", "input_tokens", "output_tokens", "cost")))  # type: ignore[arg-type]
    lines += [f"{each.stage:<12}{each.num_requests:>10,}{each.input_tokens:>14,}{each.output_tokens:>14,}{each.cost:>12.4f}"
              for each in (*found, total)]
    without = total.cost - sum(each.cost for each in found if each.stage == "repair")
    lines.append(f"at most {total.cost:.4g}, and {without:.4g} if nothing had to be repaired; max_cost is "
                 + ("not set" if config.max_cost is None else f"{config.max_cost:g}"))
    return lines
