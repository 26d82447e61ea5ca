"""The OpenAPI document against the app, by schemathesis: what is sent fits the schema or breaks it, and what comes back fits it always."""

import base64
from collections import Counter
from typing import ClassVar

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection

from serve.ingress import build_api
from tests.serve.doubles import RuleModel, RuleSegmenter
from tests.serve.test_access import GUARDED, bearer
from tests.serve.test_ingress import photo_bytes

GOOD = [photo_bytes(), photo_bytes("JPEG"), photo_bytes("WEBP", mode="RGBA"), photo_bytes("PNG", mode="L")]
PHOTOS = [*GOOD, photo_bytes("PNG", (400, 400)), b"", b"GIF89a", b"\x89PNG"]
schemathesis.openapi.format("binary", st.sampled_from(PHOTOS) | st.binary(max_size=100))
schemathesis.openapi.format("byte", st.sampled_from(PHOTOS).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=20))
# That a photo decodes, a question is not blank or a model is there, no schema can say: such requests are refused though they fit it.
CHECKS = {
    "positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "413", "415", "422"]},
    "negative_data_rejection": {"expected-statuses": ["400", "404", "405", "413", "415", "422"]},
}


class Answering(RuleSegmenter):
    """Without rules: hypothesis draws words from the source too, and "late" or "wait" would be asked."""

    def answer_async(self, photo, question, *more):
        return super().answer_async(photo, "what is on the left?", *more)


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", build_api(GUARDED, RuleModel(Answering())), headers=bearer("bob"),
                                        config=SchemathesisConfig.from_dict({"checks": CHECKS}))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
ASKING = [each for each in OPERATIONS if each.method == "post" and not each.path.endswith(("/setup", "/webhook"))]


def fits_as_text(case) -> bool:
    """Whether it may be right after all: a form makes text of every value, so that none is of a wrong type."""
    mutations = getattr(case.meta.phase.data, "mutations", ()) if case.meta else ()
    return case.media_type == "multipart/form-data" and all({"type", "anyOf"} & set(each.keywords) for each in mutations)


def send(operation, mode: GenerationMode, number: int, seed_by_name: bool = True) -> dict[int, int]:
    """Sends `number` requests and holds every answer against the document with all of schemathesis' checks; how many had each status."""
    counts: dict[int, int] = {}

    @settings(deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], max_examples=number, database=None,
              derandomize=seed_by_name)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        if isinstance(case.body, dict) and "model" in case.body and isinstance(case.body["model"], str):
            case.body["model"] = "test"  # else nearly all would ask for a model that is not there
        excluded = [negative_data_rejection] if fits_as_text(case) else []
        response = case.call_and_validate(headers=bearer("bob"), excluded_checks=excluded)
        counts[response.status_code] = counts.get(response.status_code, 0) + 1

    run()
    return counts


def test_the_operations():
    assert len(OPERATIONS) >= 13 and len(ASKING) == 5


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
def test_requests_that_fit_the_document(operation):
    counts = send(operation, GenerationMode.POSITIVE, 30)
    assert counts and max(counts) < 500


@pytest.mark.parametrize("operation", ASKING, ids=lambda each: each.label)
def test_requests_that_break_it(operation):
    counts = send(operation, GenerationMode.NEGATIVE, 40)
    assert sum(counts.values()) >= 20 and max(counts) < 500


class Requests(SCHEMA.as_state_machine()):  # type: ignore[misc]
    """One request after another, by the document's links: what one answer gives is a part of the next request."""

    counts: ClassVar[Counter[str]] = Counter()

    def get_call_kwargs(self, case):
        return {"headers": bearer("bob")}

    def validate_response(self, response, case, **more):
        self.counts[f"{case.operation.label} {response.status_code}"] += 1
        # A link can put right what the case had wrong.
        case.validate_response(response, excluded_checks=[negative_data_rejection], recorder=self.recorder)


def test_requests_that_follow_the_documents_links():
    Requests.run(settings=settings(deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], max_examples=40,
                                   stateful_step_count=8, database=None, derandomize=True))
    statuses = [int(each.rpartition(" ")[2]) for each in Requests.counts]
    assert Requests.counts["GET /v1/models/{name} 200"] > 20 and Requests.counts["POST /v1/segment 200"] and max(statuses) < 500


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
@pytest.mark.parametrize("operation", ASKING, ids=lambda each: each.label)
def test_twenty_thousand_requests(operation, mode):
    """2,000 for each of five operations in two ways."""
    assert sum(send(operation, mode, 2000, seed_by_name=False).values()) > 1900
