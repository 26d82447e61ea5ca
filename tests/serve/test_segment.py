"""Forms of the answer: mask formats, several questions, and parts as they are known."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from pixellm.masks import png_to_mask, polygons_to_rle, rle_to_mask
from serve.outputs import to_label_map
from serve.schemas import Problem, SegmentAnswers, SegmentPart, SegmentResponse
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import as_form, as_json, as_photo, ask, assert_problem, photo_bytes

PNG = photo_bytes()
LEFT_HALF = np.arange(40) < 20


def read_events(text: str) -> list[tuple[str, dict]]:
    """(kind, data) of each server-sent event."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        events.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.mark.parametrize("build", [as_form, as_json, as_photo])
def test_every_format_is_the_same_mask(build):
    def segmentation(mask_format):
        answer = SegmentResponse.model_validate(ask(**build(PNG, format=mask_format)).json())
        assert answer.masks[0].area == 400
        return answer.masks[0].segmentation, answer.label_map

    whole = np.broadcast_to(LEFT_HALF, (20, 40))
    rle, _ = segmentation("rle")
    polygons, _ = segmentation("polygons")
    png, _ = segmentation("png")
    nothing, label_map = segmentation("label_map")
    assert (rle_to_mask(rle.model_dump()) == whole).all()
    assert (rle_to_mask(polygons_to_rle(polygons, (20, 40))) == whole).all()
    assert (png_to_mask(base64.b64decode(png)) == whole).all()
    assert nothing is None
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(label_map)))) == whole).all()


@pytest.mark.parametrize("num_masks", [0, 2, 300])
def test_a_label_map_counts_from_one_and_the_later_mask_is_above(num_masks):
    answer = SegmentResponse.model_validate(ask(**as_form(PNG)).json())
    answer = answer.model_copy(update={"masks": answer.masks * num_masks})
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(to_label_map(answer)))))
    assert (labels == LEFT_HALF * num_masks).all()


@pytest.mark.parametrize("build", [as_form, as_json, as_photo])
def test_several_questions_are_one_request(build):
    model = RuleModel()
    answers = SegmentAnswers.model_validate(ask(model, **build(PNG, question=["Which half?", "none", "Which half?"])).json()).answers
    assert [len(answer.masks) for answer in answers] == [1, 0, 1]
    assert len(model.asks) == 1
    assert_problem(ask(**build(PNG, question=["Which half?", "refuse"])), 422, "photo_unreadable")


def test_a_list_of_one_question_gives_a_list():
    assert len(ask(**as_json(PNG, question=["Which half?"])).json()["answers"]) == 1


@pytest.mark.parametrize("build", [as_form, as_json, as_photo])
@pytest.mark.parametrize("mask_format", ["rle", "polygons", "png", "label_map"])
def test_parts_make_up_the_answer(build, mask_format):
    whole = [SegmentResponse.model_validate(ask(**build(PNG, question, format=mask_format)).json()) for question in ("Which half?", "none")]
    response = ask(**build(PNG, ["Which half?", "none"], format=mask_format, stream="true" if build is not as_json else True))
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = [(kind, SegmentPart.model_validate(data)) for kind, data in read_events(response.text)]
    for index, expected in enumerate(whole):
        own = [(kind, part) for kind, part in events if part.question == index]
        kind, last = own[-1]
        assert kind == "answer" and last.answer.model_copy(update={"id": expected.id}) == expected
        assert "".join(part.text for kind, part in own if kind == "text") == expected.text
        assert [part.mask for kind, part in own if kind == "mask"] == expected.masks


def test_a_failure_before_the_first_part_has_its_status_and_one_after_it_is_an_event(caplog):
    assert_problem(ask(**as_form(PNG, "refuse", stream="true")), 422, "photo_unreadable")

    class Breaking:
        async def ask(self, ask):
            async for event in RuleModel().ask(ask):
                yield event
                raise RuntimeError(f"cannot say {ask.questions}")

    response = ask(Breaking(), **as_form(PNG, "zanzibar", stream="true"))
    assert response.status_code == 200
    kind, data = read_events(response.text)[-1]
    problem = Problem.model_validate(data)
    assert kind == "error" and problem.status == 500 and problem.request_id == response.headers["x-request-id"]
    assert "RuntimeError" in caplog.text and "zanzibar" not in caplog.text + response.text


@pytest.mark.parametrize("build", [as_form, as_photo])
def test_an_empty_field_is_not_one_left_out(build):
    assert_problem(ask(**build(PNG, format="")), 422, "format_invalid")
