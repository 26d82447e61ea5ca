"""One photo to its questions, against the test endpoint; then to an entry of a MUSE file, and back by the MUSE reader."""

import asyncio
import hashlib
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from pixellm.curation import prompts
from pixellm.curation.budget import Budget, in_process
from pixellm.curation.client import ChatClient
from pixellm.curation.config import CurateConfig
from pixellm.curation.muse_form import to_entry, to_rows
from pixellm.curation.pipelines import Curation, PhotoCurator, list_instances, question_request
from pixellm.curation.proposals import Proposals
from pixellm.data.schema import RejectedRow, Row, validate_row
from pixellm.data.sources.muse import MuseSource
from pixellm.data.sources.shapes import ShapesSource
from pixellm.errors import RowError
from pixellm.settings import build_config
from tests.curation.endpoint import KEY, KEY_VARIABLE, SLIPS, Endpoint, serving
from tests.data.rows import make_photo, make_row
from tests.data.sources.build import build_all

# A file that changes gets a new number and stays beside the old one; only then is a line added here.
SHA256_OF_PROMPTS = {
    "caption.1.txt": "87077fa5f26cdbdc",
    "questions_from_caption.1.txt": "c9708101cbd34e20",
    "questions_from_photo.1.txt": "a76496bbcd5be6c0",
    "repair.1.txt": "a8124704fcdb61ab",
    "answer_type": "d88f53d5a127a60f",
}


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


@pytest.fixture(scope="module")
def scenes() -> list[Row]:
    return build_all(ShapesSource(num_scenes=40, questions_per_scene=1))[0]


def make_config(url: str, pipeline: str, **changes) -> CurateConfig:
    endpoint = {"url": url, "model": "test", "api_key_env": KEY_VARIABLE, "request_timeout_s": 5}
    language = {"language": endpoint | {"model": "words"}} if pipeline == "v1" else {}
    return build_config(CurateConfig, {"shards": "s", "output": "o", "cache": "c", "pipeline": pipeline, "vision": endpoint,
                                       **language, **changes})


def curate_all(endpoint: Endpoint, pipeline: str, cache: Path, rows: list[Row], **changes) -> list[Curation]:
    config = make_config(endpoint.url, pipeline, **changes)

    async def run() -> list[Curation]:
        call, endpoints = in_process(Budget(config.endpoints())), config.endpoints()
        async with AsyncExitStack() as stack:
            clients = {name: await stack.enter_async_context(ChatClient(each, name, call, str(cache))) for name, each in endpoints.items()}
            return await asyncio.gather(*(PhotoCurator(config, clients).curate(row) for row in rows))

    return asyncio.run(run())


@pytest.mark.parametrize("pipeline", ["v1", "v2"])
def test_wrong_proposals_are_repaired_once_and_kept(pipeline: str, tmp_path: Path, scenes: list[Row]) -> None:
    with serving(Endpoint(seed=3, faults={}, slips={name: 3 * share for name, share in SLIPS.items()})) as endpoint:
        curations = curate_all(endpoint, pipeline, tmp_path, scenes)
    rejected = [each for curation in curations for each in curation.rejected]
    reasons = Counter(each["reason"] for each in rejected)
    assert {"unknown_instance", "too_few_targets", "leak", "bare_description", "seg_count_mismatch", "not_json"} <= reasons.keys()
    assert all({"question", "answer", "targets"} <= each.keys() or each["reason"] == "not_json" for each in rejected)
    assert {each["model"] for each in rejected} == {"words" if pipeline == "v1" else "test"}
    for curation in curations:
        assert len(curation.accepted) == 3, "the test endpoint makes its slips in first answers only"
        stages = [each.stage for each in curation.completions]
        assert stages == (["caption"] if pipeline == "v1" else []) + ["questions"] + (["repair"] if curation.rejected else [])
    assert len(endpoint.delivered) == sum(len(curation.completions) for curation in curations)


def test_a_repair_that_is_wrong_too_is_rejected_and_not_repaired(tmp_path: Path, scenes: list[Row]) -> None:
    endpoint = Endpoint(faults={})
    endpoint.answer = lambda body, rng: (json.dumps({"questions": []}) if len(body["messages"]) == 1 else "", "stop")  # type: ignore[method-assign]
    with serving(endpoint):
        empty, = curate_all(endpoint, "v2", tmp_path / "a", scenes[:1])
    assert not empty.accepted and not empty.rejected and len(empty.completions) == 1, "no question is no mistake"
    endpoint.answer = lambda body, rng: ("What a nice photo!", "stop")  # type: ignore[method-assign]
    with serving(endpoint):
        chatty, = curate_all(endpoint, "v2", tmp_path / "b", scenes[:1])
    assert [(each["reason"], each["stage"]) for each in chatty.rejected] == [("not_json", "questions"), ("not_json", "repair")]


def test_more_than_was_asked_for_is_not_taken(tmp_path: Path, scenes: list[Row]) -> None:
    endpoint = Endpoint(faults={}, slips={})
    answer = endpoint.answer

    def twice(body, rng):
        content, reason = answer(body, rng)
        return json.dumps({"questions": [*json.loads(content)["questions"], *json.loads(answer(body, rng)[0])["questions"]]}), reason

    endpoint.answer = twice  # type: ignore[method-assign]
    with serving(endpoint):
        curation, = curate_all(endpoint, "v2", tmp_path, scenes[:1], questions_per_photo=2)
    assert len(curation.accepted) == 2 and [each["reason"] for each in curation.rejected] == ["surplus"] * 2
    assert len(curation.completions) == 1, "nothing is to be repaired"


def test_a_photo_with_one_instance_is_not_asked_about(tmp_path: Path) -> None:
    row = make_row()
    row["regions"][1]["ignore"] = True
    with serving(Endpoint()) as endpoint, pytest.raises(RowError, match="nothing_to_ask"):
        curate_all(endpoint, "v2", tmp_path, [row])
    assert not endpoint.arrivals


def test_the_model_is_told_the_largest_instances_as_it_sees_them(scenes: list[Row]) -> None:
    row = max(scenes, key=lambda row: len(row["regions"]))
    listed = list_instances(row, 3)
    areas = [region["area"] for region in row["regions"]]
    assert sorted(areas)[-3:] == sorted(areas[index] for index in listed) and listed == sorted(listed)
    config = make_config("http://x", "v2", photo_side=48, max_listed=3)
    request = question_request(row, listed, config)
    text = request.turns[0]
    objects = json.loads(next(line for line in text.splitlines() if line.startswith('[{"id"')))
    left, top, width, height = row["regions"][listed[0]]["box_xywh"]
    assert objects[0] == {"id": listed[0], "name": row["regions"][listed[0]]["category"],
                          "box": [round(side / 2) for side in (left, top, left + width, top + height)]}
    assert "48 pixels wide and 48 pixels high" in text and "3 questions" in text and "{objects}" not in text and "{seg}" in text
    body = request.body(config.vision)
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert body["response_format"]["json_schema"]["strict"] and "strict" in json.dumps(body)


def test_a_request_is_named_by_all_that_its_answer_depends_on(scenes: list[Row]) -> None:
    config = make_config("http://x", "v2")
    request = question_request(scenes[0], [0, 1], config)
    key = request.key(config.vision)
    assert key == request.key(make_config("http://elsewhere", "v2").vision)
    others = [config.vision.model_copy(update=changes) for changes in ({"model": "other"}, {"temperature": 0}, {"max_output_tokens": 9})]
    requests = [question_request(scenes[1], [0, 1], config), question_request(scenes[0], [0], config),
                question_request(scenes[0], [0, 1], make_config("http://x", "v2", photo_side=90))]
    keys = [request.key(each) for each in others] + [each.key(config.vision) for each in requests]
    assert len({key, *keys}) == 7


def test_the_muse_file_reads_back_as_the_rows(tmp_path: Path, scenes: list[Row]) -> None:
    url = "http://images.cocodataset.org/train2017/000000000030.jpg"
    size = {"height": 12, "width": 16}
    photos = [*scenes[:3], make_row(30, url=url, license="CC"), make_row(7, url="http://farm.example/77_x.jpg", image=make_photo(
        height=16, width=12, orientation=6), **size)]
    with serving(Endpoint()) as endpoint:
        curations = curate_all(endpoint, "v2", tmp_path / "cache", photos, questions_per_photo=2)
    entries = [to_entry(row, curation) for row, curation in zip(photos, curations, strict=True)]
    made = [built for entry, row in zip(entries, photos, strict=True) for built in to_rows(entry, row, "curated_v2", "val")]
    assert [(entry.coco_url, entry.file_name) for entry in entries[3:]] == [(url, None), (None, "000000000007.jpg")]
    for row, entry, photo in zip(made, entries, photos, strict=True):
        assert not isinstance(row, RejectedRow)
        validate_row(row)
        assert (row["source"], row["split"], row["image_id"], row["license"]) == ("curated_v2", "val", photo["image_id"], photo["license"])
        name = entry.file_name or entry.coco_url.rpartition("/")[2]  # type: ignore[union-attr]
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(photo["image"])
        assert len(entry.provenance) == len(entry.questions) and entry.provenance[0]["model"] == "test"
    (tmp_path / "muse_val.json").write_bytes(msgspec.json.encode(entries))
    rows, rejected = build_all(MuseSource(input=str(tmp_path), photos=str(tmp_path / "photos"), split="val"))
    same = ("image", "height", "width", "regions", "conversations")
    assert not rejected and [[row[name] for name in same] for row in rows] == [[row[name] for name in same] for row in made]
    descriptions = [region["description"] for row in rows for region in row["regions"]]
    assert descriptions and all(" in view" in text for text in descriptions)


def test_prompts_change_by_a_new_file_only() -> None:
    folder = Path(prompts.__file__).parent
    texts = {file.name: file.read_bytes() for file in folder.glob("*.txt")}
    texts["answer_type"] = json.dumps(Proposals.model_json_schema(), sort_keys=True).encode()  # is sent with every prompt
    assert {name: hashlib.sha256(text).hexdigest()[:16] for name, text in texts.items()} == SHA256_OF_PROMPTS
    assert {f"{name}.txt" for pipeline in ("v1", "v2") for name in prompts.prompts_of(pipeline)} <= texts.keys()
