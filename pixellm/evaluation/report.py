"""An evaluation as files: `report.json` for programs and `report.html`, one self-contained page, for people."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pixellm.evaluation.evaluate import Evaluation, PhotoKey, ScoredAnswer, photo_key, read_photos
from pixellm.evaluation.report_page import Card, build_card, build_page
from pixellm.inference.photos import load_photo
from pixellm.storage import join_uri, write_bytes

MODE = "free"  # generation; no figure of ours is teacher-forced
MAX_LISTED_FAILURES = 100


def write_report(evaluation: Evaluation) -> str:
    """Write both files to `config.output`, and to `config.local_copy` if it is given. Returns the URI of the page."""
    config = evaluation.config
    report = build_report(evaluation)
    files = {"report.json": json.dumps(report, indent=2) + "\n", "report.html": build_page(report, build_cards(evaluation))}
    for folder in filter(None, (config.output, config.local_copy and str(Path(config.local_copy).absolute()))):
        for name, content in files.items():
            write_bytes(join_uri(folder, name), content.encode())
    return join_uri(config.output, "report.html")


def build_report(evaluation: Evaluation) -> dict[str, Any]:
    """What report.json holds: plain values only."""
    return {
        "mode": MODE,
        "model": evaluation.config.model,
        "shards": evaluation.config.shards,
        "sources": [f"{source.name} ({source.version})" for source in evaluation.manifest.sources],
        "num_photos": evaluation.num_photos,
        "num_questions": len(evaluation.answers),
        "metrics": evaluation.metrics.to_dict(),
        "num_cut_off": sum(answer.record["finish_reason"] == "length" for answer in evaluation.answers),
        "num_failed_photos": len(evaluation.failures),
        "failed_by_reason": evaluation.failures_by_reason,
        "failed_photos": [{name: record[name] for name in ("source", "split", "image_id", "failure", "failure_detail")}
                          for record in evaluation.failures[:MAX_LISTED_FAILURES]],
        "duration_s": round(evaluation.duration_s, 1),
        "settings": evaluation.config.model_dump(),
    }


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """The few figures that a job prints as its last line."""
    metrics = evaluation.metrics
    return {
        "mode": MODE, "giou": _rounded(metrics.all.giou), "ciou": _rounded(metrics.all.ciou), "giou_few": _rounded(metrics.few.giou),
        "giou_many": _rounded(metrics.many.giou), "giou_no_target": _rounded(metrics.no_target.giou),
        "giou_per_question": _rounded(metrics.all.giou_per_question), "num_questions": metrics.all.num_questions,
        "num_wrong_count": metrics.all.num_wrong_count, "num_photos": evaluation.num_photos, "num_failed_photos": len(evaluation.failures),
    }


def choose_examples(answers: list[ScoredAnswer], count: int, how: str, seed: int) -> dict[str, list[ScoredAnswer]]:
    """At most `count` answers by heading. `how` is `random`, `worst`, `best`, or `mixed` for a third of each; none is shown twice.

    The best are chosen among the questions with targets: a right "there are none" has IoU 1 and nothing to see.
    """
    order = np.random.default_rng(seed).permutation(len(answers))
    by_score = sorted(order, key=lambda place: answers[place].score.iou)
    pools = {"random": order, "worst": by_score, "best": [place for place in reversed(by_score) if answers[place].score.num_true]}
    shares = {each: count // 3 for each in ("worst", "best")} | {"random": count - 2 * (count // 3)} if how == "mixed" else {how: count}
    shown: set[int] = set()
    chosen: dict[str, list[ScoredAnswer]] = {}
    for heading in sorted(shares, key=["random", "worst", "best"].index):
        places = _spread(pools[heading], shares[heading], shown, lambda place: photo_key(answers[place].record))
        shown.update(places)
        chosen[heading] = [answers[place] for place in places]
    return chosen


def build_cards(evaluation: Evaluation) -> dict[str, list[Card]]:
    """The examples with their pictures drawn, by heading."""
    config = evaluation.config
    chosen = choose_examples(evaluation.answers, config.num_examples, config.examples, config.seed)
    photos = read_photos(config.shards, {photo_key(answer.record) for answers in chosen.values() for answer in answers})
    return {heading: [build_card(load_photo(photos[photo_key(answer.record)]), answer) for answer in answers]
            for heading, answers in chosen.items()}


def _spread(pool: Any, count: int, shown: set[int], photo_of: Callable[[int], PhotoKey]) -> list[int]:
    """The first `count` of `pool` that are not `shown`, each of another photo as long as there are enough photos."""
    left = [int(place) for place in pool if place not in shown]
    first_of_photo: dict[PhotoKey, int] = {}
    for place in left:
        first_of_photo.setdefault(photo_of(place), place)
    firsts = set(first_of_photo.values())
    chosen = [place for place in left if place in firsts][:count]
    chosen += [place for place in left if place not in firsts][:count - len(chosen)]
    return chosen


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
