"""Counts the operations of one answer of the presets, and of a SAM-based model with the same language model.

`python -m jobs.benchmark suite=flops [prompt_tokens=64] [answer_tokens=32] [num_targets=4] [output=docs/benchmarks]`
"""

from typing import Any

from pydantic import Field

from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Table
from pixellm.model.flops import Workload, count_pixellm, count_sam_based
from pixellm.model.presets import preset_config

TERA = 1e12


class Config(BenchmarkConfig):
    """Which presets, and the question that is counted; four targets are about the mean of MUSE's questions (3.7)."""

    presets: tuple[str, ...] = ("7b", "13b")
    prompt_tokens: int = Field(64, gt=0, description="of the prompt, beside the photo's")
    answer_tokens: int = Field(32, gt=0, description="of the answer, beside those that stand for its targets")
    num_targets: int = Field(4, gt=0)


def run(config: Config) -> BenchmarkResult:
    """Counts without weights: everything is on torch's `meta` device."""
    workload = Workload(config.prompt_tokens, config.answer_tokens, config.num_targets)
    headline: dict[str, Any] = {key: {} for key in (
        "tflop_ours", "tflop_sam_based", "ratio", "ratio_without_decode", "tmac_ours", "tmac_sam_based", "tflop_ours_by_part",
        "tflop_sam_based_by_part")}
    tables = []
    for preset in config.presets:
        ours, theirs = (count(preset_config(preset), workload) for count in (count_pixellm, count_sam_based))
        totals, without_decode = [], []
        for name, parts in (("ours", ours), ("sam_based", theirs)):
            total = sum(parts.values())
            totals.append(total)
            without_decode.append(total - parts["language model, decode"])
            headline[f"tflop_{name}"][preset], headline[f"tmac_{name}"][preset] = total / TERA, total / 2 / TERA
            headline[f"tflop_{name}_by_part"][preset] = {part: count / TERA for part, count in parts.items()}
        headline["ratio"][preset], headline["ratio_without_decode"][preset] = totals[0] / totals[1], without_decode[0] / without_decode[1]
        counts = {part: (ours.get(part, 0), count) for part, count in theirs.items()} | {"all": tuple(totals)}
        rows = [(part, *(count / TERA for count in both), *(count / 2 / TERA for count in both)) for part, both in counts.items()]
        ratios = f"{headline['ratio'][preset]:.3f} of the SAM-based model's, {headline['ratio_without_decode'][preset]:.3f} without decode"
        tables.append(Table(f"`{preset}`: {ratios}", ("part", "TFLOP ours", "TFLOP SAM-based", "TMAC ours", "TMAC SAM-based"), rows))
    return BenchmarkResult(headline, tables=tables, notes=(
        f"One photo; a prompt of {config.prompt_tokens} tokens and 256 of the photo; an answer of {config.answer_tokens} tokens and "
        f"{config.num_targets} targets, each of 6 tokens in ours and of 1 in the SAM-based model; KV cache in both.",
        "TFLOP counts a multiply-add as two operations, TMAC as one; the paper, which says about half, probably counts it as one.",
        "SAM-based: CLIP ViT-L/14 at 224 for the language model, SAM ViT-H at 1024 and its mask decoder, as LISA uses them.",
        "`ratio_without_decode` leaves the generation of the answer out: what one pass over a given answer's prompt would count."))
