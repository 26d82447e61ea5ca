"""An evaluation as files: `report.json` for programs, `report.md` and `report.html`, one self-contained page, for people, and
`scores.parquet`, what each photo adds to each figure, for `jobs.compare`."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pixellm.evaluation.attention import to_template, token_attention
from pixellm.evaluation.breakdowns import by_num_targets, by_size, count_confusion
from pixellm.evaluation.evaluate import EvaluateConfig, Evaluation, PhotoKey, ScoredAnswer, photo_key, read_photos
from pixellm.evaluation.figures import Figure, interval
from pixellm.evaluation.report_page import Card, Looks, build_card, build_page, draw_looks
from pixellm.inference.segmenter import load_segmenter
from pixellm.photos import load_photo
from pixellm.resources import run_task
from pixellm.storage import file_sizes, join_uri, write_bytes

SCORES, PAGE = "scores.parquet", "report.html"
WORKING_BYTES = 1e9  # of a task that has a model, beside the model
PHOTO_COLUMNS = ("source", "split", "image_id")
MAX_LISTED_FAILURES = 100


def write_report(evaluation: Evaluation, say: Callable[[str], object] = print) -> str:
    """Write the files to `config.output`, and to `config.local_copy` if it is given. Returns the URI of the page.

    All figures are written before any picture is drawn; a picture that fails is told to `say` and costs nothing else.
    """
    config, report = evaluation.config, build_report(evaluation)
    folders = [folder for folder in (config.output, config.local_copy) if folder]

    def write(files: dict[str, bytes]) -> None:
        for folder in folders:
            for name, content in files.items():
                write_bytes(join_uri(folder, name), content)

    write({"report.json": (json.dumps(report, indent=2) + "\n").encode(), "report.md": build_markdown(report).encode(),
           PAGE: build_page(report, {}).encode(), SCORES: write_scores(evaluation)})
    looks: dict[int, Looks] = {}
    for what, draw in (("examples", lambda: {}), ("attention", lambda: draw_attention(evaluation, say))):
        try:
            looks = draw()
            if what == "examples" or looks:
                write({PAGE: build_page(report, build_cards(evaluation, looks)).encode()})
        except Exception as error:  # the figures are what the evaluation was for
            say(f"evaluate: the page is without its {what}, the figures are whole: {type(error).__name__}: {error}")
    return join_uri(config.output, PAGE)


def build_report(evaluation: Evaluation) -> dict[str, Any]:
    """What report.json holds: plain values only."""
    scores = [answer.score for answer in evaluation.answers]
    return {
        "protocol": evaluation.config.protocol,
        "mode": evaluation.config.mode,
        "judge": evaluation.judge_name,
        "num_unjudged": sum(each is None for each in evaluation.judgements) if evaluation.judge_name else None,
        "figures": {name: figure_values(figure, evaluation.config.seed) for name, figure in evaluation.figures.items()},
        "count_confusion": count_confusion(scores),
        "by_size": by_size((answer.score, answer.record["true_masks"]) for answer in evaluation.answers),
        "by_num_targets": by_num_targets(scores),
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
        "protocol": evaluation.config.protocol, "mode": evaluation.config.mode,
        "figures": {name: _rounded(figure.value()) for name, figure in evaluation.figures.items()},
        "giou": _rounded(metrics.all.giou), "ciou": _rounded(metrics.all.ciou), "giou_few": _rounded(metrics.few.giou),
        "giou_many": _rounded(metrics.many.giou), "giou_no_target": _rounded(metrics.no_target.giou),
        "giou_per_question": _rounded(metrics.all.giou_per_question), "num_questions": metrics.all.num_questions,
        "num_wrong_count": metrics.all.num_wrong_count, "num_photos": evaluation.num_photos, "num_failed_photos": len(evaluation.failures),
    }


def figure_values(figure: Figure, seed: int) -> dict[str, float | None]:
    """Value and interval."""
    found = interval(figure, seed)
    return {"value": figure.value(), "low": found.low if found else None, "high": found.high if found else None}


def build_markdown(report: dict[str, Any]) -> str:
    """A table of the figures, to be pasted."""
    lines = [f"# {report['model']} on {report['shards']}", "", f"Protocol {report['protocol']}, {report['mode']} generation, "
             f"{report['num_photos']} photos, {report['num_questions']} questions, {report['num_failed_photos']} photos set aside."]
    lines += [f"Judge: {report['judge']}; {report['num_unjudged']} questions were not judged."] if report["judge"] else []
    lines += ["", "| figure | value | 95 % interval |", "| --- | ---: | --- |"]
    for name, each in report["figures"].items():
        shown = "" if each["low"] is None else f"{each['low']:.4f} to {each['high']:.4f}"
        lines.append(f"| {report['protocol']} {report['mode']} {name} | " + ("none" if each["value"] is None else f"{each['value']:.4f}")
                     + f" | {shown} |")
    return "\n".join(lines) + "\n"


def write_scores(evaluation: Evaluation) -> bytes:
    """A Parquet file: photo, and of each figure `NAME/numerators` and `NAME/denominators`, a number for each column."""
    columns: dict[str, Any] = {name: [photo[place] for photo in evaluation.photos] for place, name in enumerate(PHOTO_COLUMNS)}
    for name, figure in evaluation.figures.items():
        columns |= {f"{name}/numerators": figure.numerators.tolist(), f"{name}/denominators": figure.denominators.tolist()}
    about = {"protocol": evaluation.config.protocol, "mode": evaluation.config.mode, "judge": evaluation.judge_name or "none",
             "shards": evaluation.config.shards, "model": evaluation.config.model,
             "columns": json.dumps({name: figure.columns for name, figure in evaluation.figures.items()})}
    stream = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(about), stream)
    return stream.getvalue()


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


def build_cards(evaluation: Evaluation, looks: Mapping[int, Looks]) -> dict[str, list[Card]]:
    """The examples with their pictures drawn, by heading. `looks` are by `id` of the answer."""
    chosen, photos = _examples(evaluation)
    return {heading: [build_card(load_photo(photos[photo_key(answer.record)]), answer, looks.get(id(answer), ())) for answer in answers]
            for heading, answers in chosen.items()}


def draw_attention(evaluation: Evaluation, say: Callable[[str], object] = print) -> dict[int, Looks]:
    """Attention pictures of the first `attention_examples` examples with masks, by `id` of the answer, drawn in a Ray task.

    Raises ResourcesError where no node has the memory, and what loading the model raises.
    """
    config = evaluation.config
    chosen, photos = _examples(evaluation)
    shown = [answer for answers in chosen.values() for answer in answers if answer.record["masks"]][:config.attention_examples]
    if not shown:
        return {}
    asked = [(photos[photo_key(answer.record)], answer.record["question"], to_template(answer.record["text"], answer.record["spans"]))
             for answer in shown]
    bundle = {"CPU": config.cpus_per_worker, "memory": _model_memory(config)} | (
        {"GPU": config.gpus_per_worker} if config.gpus_per_worker else {})
    drawn = run_task(_draw_looks, config.model_copy(update={"int8_weights": False}), asked, bundle=bundle, what="drawing attention",
                     patience_s=config.resource_wait_s, near="://" not in config.model, say=say)
    return {id(answer): each for answer, each in zip(shown, drawn, strict=True)}


def _draw_looks(config: EvaluateConfig, asked: list[tuple[bytes, str, str]]) -> list[Looks]:
    """In the task. Photos, questions and answers; whole maps stay here, since those of a large photo take gigabytes."""
    segmenter = load_segmenter(config)
    return [draw_looks(image := load_photo(photo), token_attention(segmenter.model, segmenter.processor, image, question, answer))
            for photo, question, answer in asked]


def _model_memory(config: EvaluateConfig) -> float:
    """Bytes: files of 16 bits may be loaded as 32, and some working room."""
    stored = 0 if config.model == "tiny" else sum(size for uri, size in file_sizes(config.model).items() if uri.endswith(".safetensors"))
    return stored * (2 if config.dtype == "float32" else 1) + WORKING_BYTES


def _examples(evaluation: Evaluation) -> tuple[dict[str, list[ScoredAnswer]], dict[PhotoKey, bytes]]:
    """By heading, and their photos."""
    config = evaluation.config
    chosen = choose_examples(evaluation.answers, config.num_examples, config.examples, config.seed)
    return chosen, read_photos(config.shards, {photo_key(answer.record) for answers in chosen.values() for answer in answers})


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
