"""OpenAI's protocol, spoken by OpenAI's own client, which is not told that the server is another."""

import asyncio
import base64
import json
from urllib.parse import quote

import httpx
import openai
import pytest
from pydantic import ValidationError

from pixellm.inference.config import AnswerOptions, Turn
from pixellm.masks import rle_to_mask
from serve.chat import to_grounding
from serve.chat_schemas import ChatMessage
from serve.conversations import _text
from serve.ingress import build_api
from serve.limits import decode_base64
from serve.problems import ApiError
from serve.schemas import Mask
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import CONFIG, Raising, assert_problem, call, photo_bytes
from tests.serve.test_segment import read_events

PNG = photo_bytes()
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
PHOTO = {"type": "image_url", "image_url": {"url": DATA_URL}}


def user(text: str, *parts: dict) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts]}


def with_client(use, model=None, max_retries: int = 0):
    """What `use(client)` gives, with OpenAI's asynchronous client on an API in this process."""
    async def run():
        transport = httpx.ASGITransport(build_api(CONFIG, model or RuleModel()))
        async with httpx.AsyncClient(transport=transport) as http:
            return await use(openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=max_retries))

    return asyncio.run(run())


def complete(messages=None, model=None, **options):
    async def use(client):
        answer = await client.chat.completions.create(model="test", messages=messages or [user("Which half?", PHOTO)], **options)
        return [chunk async for chunk in answer] if options.get("stream") else answer

    return with_client(use, model)


def test_the_client_reads_text_masks_grounding_and_usage():
    answer = complete()
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", "It is the left half.", "stop")
    (mask,) = message.masks
    assert rle_to_mask(mask["segmentation"]).sum() == mask["area"] == 400 and message.content[slice(*mask["span"])] == "the left half"
    assert message.grounding == [{"text": "It is ", "mask_ids": []}, {"text": "the left half", "mask_ids": ["mask_0"]},
                                 {"text": ".", "mask_ids": []}]
    assert (answer.object, answer.model) == ("chat.completion", "test")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 9


def test_a_stream_is_the_same_answer_in_parts():
    whole = complete().choices[0].message
    chunks = complete(stream=True, stream_options={"include_usage": True})
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *parts, usage = chunks
    assert usage.choices == [] and usage.usage.completion_tokens == 9
    deltas = [chunk.choices[0].delta for chunk in parts]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.content
    assert [mask for delta in deltas for mask in getattr(delta, "masks", [])] == whole.masks
    assert parts[-1].choices[0].finish_reason == "stop" and deltas[-1].grounding == whole.grounding
    assert [chunk.choices[0].finish_reason for chunk in parts[:-1]] == [None] * (len(parts) - 1)
    assert all(chunk.choices for chunk in complete(stream=True))  # no usage unless it is asked for


def test_what_goes_over_the_wire_in_a_stream():
    body = {"model": "test", "messages": [user("Which half?", PHOTO)], "stream": True}
    response = call("POST", "/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, end = response.text.removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    choices = [json.loads(chunk.removeprefix("data: "))["choices"][0] for chunk in chunks]
    assert [sorted(choice["delta"]) for choice in choices] == [["content", "role"], ["content"], ["content", "masks"], ["grounding"]]
    assert all({"index", "finish_reason"} <= choice.keys() for choice in choices)


@pytest.mark.parametrize("seed", [-1, -7, -(2**63), 2**63 - 1])
def test_any_int64_is_a_seed(seed):
    model = RuleModel()
    complete(model=model, temperature=1, seed=seed)
    assert [ask.options.seed for ask in model.asks] == [seed]


def test_options_reach_the_model():
    model = RuleModel()
    complete(model=model, temperature=0.5, top_p=0.9, seed=7, stop=["end"], max_tokens=5)
    complete(model=model, temperature=0, stop="end", max_completion_tokens=1000, user="somebody", extra_body={"unheard_of": 1})
    limits = {"timeout_s": CONFIG.request_timeout_s, "max_targets": CONFIG.max_targets}
    assert [ask.options for ask in model.asks] == [
        AnswerOptions(temperature=0.5, top_p=0.9, seed=7, stop=("end",), **limits), AnswerOptions(stop=("end",), **limits)]
    assert [ask.max_new_tokens for ask in model.asks] == [5, CONFIG.max_new_tokens]


def test_several_turns():
    model = RuleModel()
    first = complete().choices[0].message
    complete([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [PHOTO]}, user("Which half?", PHOTO),
              {"role": "assistant", "content": first.content, "masks": first.masks}, {"role": "user", "content": "And now?"}], model=model)
    (ask,) = model.asks
    assert ask.questions == ("And now?",)
    assert ask.options.history == (Turn("Be brief.\nWhich half?", "It is the left half {seg}."),)
    plain = {"role": "assistant", "content": first.content}
    complete([user("a", {"type": "image_url", "image_url": DATA_URL}), plain, user("b"), plain, user("c", PHOTO)], model=model)
    assert model.asks[1].options.history == (Turn("a", first.content), Turn("b", first.content))


@pytest.mark.parametrize("messages, status, code", [
    ([user("Which?")], 422, "image_missing"),
    ([user("Which?", PHOTO, {"type": "image_url", "image_url": {"url": DATA_URL + "="}})], 422, "image_too_many"),
    ([user("Which?", {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})], 422, "image_url"),
    ([user("Which?", {"type": "image_url", "image_url": {"url": "data:image/png,x"}})], 422, "image_base64"),
    ([user("Which?", {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}})], 415, "photo_format"),
    ([user("Which?", {"type": "image_url"})], 422, "messages_invalid"),
    ([user("Which?", {"type": "input_audio"})], 422, "messages_invalid"),
    ([user(" ", PHOTO)], 422, "question_missing"),
    ([user("x" * 101, PHOTO)], 422, "question_too_long"),
    ([{"role": "system", "content": "x" * 90}, user("x" * 90, PHOTO)], 422, "question_too_long"),
    ([user("Which?", PHOTO), {"role": "assistant", "content": "It."}], 422, "messages_invalid"),
    ([{"role": "assistant", "content": "It."}, user("Which?", PHOTO)], 422, "messages_invalid"),
    ([user("Which?", PHOTO), {"role": "assistant", "content": "It.", "masks": [{"span": [0, 9]}]}, user("And?")], 422, "messages_invalid"),
    ([user("Which?", PHOTO), {"role": "assistant", "content": "x" * 2049}, user("And?")], 422, "messages_invalid"),
    ([user("Which?", PHOTO), {"role": "tool", "content": "It."}, user("And?")], 422, "messages_invalid"),
    ([*[user("Which?", PHOTO), {"role": "assistant", "content": "It."}] * 16, user("And?")], 422, "messages_too_many"),
    ([], 422, "messages_invalid"),
])
def test_conversations_that_cannot_be_answered(messages, status, code):
    response = call("POST", "/v1/chat/completions", json={"model": "test", "messages": messages})
    assert_problem(response, status, code)


@pytest.mark.parametrize("more, status, code", [
    ({"model": "gpt-4o"}, 404, "model_not_found"), ({"n": 2}, 422, "n_invalid"), ({"temperature": -1}, 422, "temperature_invalid"),
    ({"top_p": 0}, 422, "top_p_invalid"), ({"stop": ["a"] * 5}, 422, "stop_invalid"), ({"stop": ""}, 422, "stop_invalid"),
    ({"max_tokens": 0}, 422, "max_tokens_invalid"), ({"seed": 2**63}, 422, "seed_invalid")])
def test_options_that_cannot_be_followed(more, status, code):
    body = {"model": "test", "messages": [user("Which?", PHOTO)], **more}
    assert_problem(call("POST", "/v1/chat/completions", json=body), status, code)


def test_the_client_raises_its_own_errors():
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        complete([user("refuse", PHOTO)])
    assert refused.value.code == "photo_unreadable" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        with_client(lambda client: client.models.retrieve("other"))
    with pytest.raises(openai.InternalServerError):
        complete(model=Raising(RuntimeError("no")))

    class Breaking(RuleModel):
        async def ask(self, ask):
            async for event in super().ask(ask):
                yield event
                raise RuntimeError

    with pytest.raises(openai.APIError, match="The server failed on this request"):
        complete(model=Breaking(), stream=True)


def test_the_client_tries_again_when_it_is_told_to():
    class BusyOnce(RuleModel):
        async def ask(self, ask):
            self.asks.append(ask)
            if len(self.asks) == 1:
                raise ApiError(503, "overloaded", "Too many.", headers={"retry-after": "0"})
            async for event in super().ask(ask):
                yield event

    async def use(client):
        return await client.chat.completions.create(model="test", messages=[user("Which half?", PHOTO)])

    assert with_client(use, BusyOnce(), max_retries=1).choices[0].message.content == "It is the left half."


def test_models_are_listed():
    async def use(client):
        return [model.id async for model in client.models.list()], (await client.models.retrieve("test")).id

    assert with_client(use) == (["test"], "test")


def test_a_failure_in_a_stream_is_a_problem():
    class Breaking(RuleModel):
        async def ask(self, ask):
            async for event in super().ask(ask):
                yield event
                raise ApiError(503, "model_lost", "The model was lost.")

    response = call("POST", "/v1/chat/completions", Breaking(), json={"model": "test", "messages": [user("Which?", PHOTO)], "stream": True})
    last = response.text.removesuffix("\n\n").split("\n\n")[-1]
    assert read_events(last + "\n\n")[0][1]["error"]["code"] == "model_lost" and "[DONE]" not in response.text


def test_grounding_of_shared_overlapping_and_empty_spans():
    def mask(name, *span):
        return Mask(id=name, label="", span=span, score=1, bbox=(0, 0, 0, 0), area=0, color="#000000")

    pieces = to_grounding("ab cd ef", [mask("x", 0, 0), mask("a", 0, 5), mask("b", 3, 8), mask("c", 0, 5)])
    assert [(piece.text, piece.mask_ids) for piece in pieces] == [
        ("", ["x"]), ("ab ", ["a", "c"]), ("cd", ["a", "b", "c"]), (" ef", ["b"])]
    assert to_grounding("", []) == [] and [piece.text for piece in to_grounding("ab", [])] == ["ab"]


def test_spans_are_put_in_one_pass_and_lists_are_bounded():
    """Each span copied the whole text: five requests of 9 MB held an ingress until it was killed."""
    text = "ab " * 20_000
    masks = [{"span": [3 * number, 3 * number + 2]} for number in range(1000)]
    said = ChatMessage.model_validate({"role": "assistant", "content": text, "masks": masks[::-1]})
    assert _text(said, {}) == "ab {seg} " * 1000 + "ab " * 19_000
    with pytest.raises(ValidationError):
        ChatMessage.model_validate({"role": "assistant", "content": "ab", "masks": masks * 2})
    with pytest.raises(ValidationError):
        ChatMessage.model_validate({"role": "user", "content": [{"type": "text", "text": "a"}] * 2000})


REFUSED = {
    "response_format": {"type": "json_object"}, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "required", "logprobs": True, "top_logprobs": 3, "n": 2, "logit_bias": {"50256": -100}, "presence_penalty": 0.5,
    "frequency_penalty": -0.5, "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}, "functions": [{"name": "f"}],
    "prediction": {"type": "content", "content": "a"}}
HARMLESS = {
    "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "logprobs": False, "n": 1, "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0, "modalities": ["text"], "parallel_tool_calls": True, "service_tier": "auto", "store": False, "user": "u",
    "metadata": {"a": "b"}}


@pytest.mark.parametrize("name", REFUSED)
def test_a_parameter_that_would_change_the_answer_is_refused_by_its_name(name):
    async def use(client):
        return await client.chat.completions.create(model="test", messages=[user("Which?", PHOTO)], **{name: REFUSED[name]})

    with pytest.raises(openai.UnprocessableEntityError) as error:
        with_client(use)
    assert error.value.param == name and error.value.code == f"{name}_invalid" and name in error.value.message


def test_values_that_change_nothing_are_taken():
    async def use(client):
        return await client.chat.completions.create(model="test", messages=[user("Which?", PHOTO)], **HARMLESS)

    assert with_client(use).choices[0].message.content


@pytest.mark.parametrize("url", [
    "DATA:image/png;BASE64,{}", "data:image/png;charset=utf-8;base64,{}", "data:;base64,{}", "{}", "data:image/png;base64, {}\n"])
@pytest.mark.parametrize("write", [
    lambda data: base64.b64encode(data).decode(), lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    lambda data: quote(base64.b64encode(data).decode(), safe=""), lambda data: base64.encodebytes(data).decode()])
def test_base64_in_the_ways_that_clients_write_it(url, write):
    given = url.format(write(PNG))
    if "%" in given and not given.lower().startswith("data:"):
        pytest.skip("only a URL is percent-encoded")
    assert decode_base64(given) == PNG


def test_masks_of_earlier_answers_are_no_flood():
    """COCO's RLE is written with characters from 0 to o: colons and brackets among them."""
    counts = "".join(map(chr, range(48, 112))) * 120
    masks = [{"span": [0, 2], "segmentation": {"size": [1080, 1920], "counts": counts}} for _ in range(20)]
    said = [user("Which?", PHOTO), {"role": "assistant", "content": "It.", "masks": masks}, user("And?")]
    config = CONFIG.model_copy(update={"max_body_mb": 20})
    response = call("POST", "/v1/chat/completions", config=config, json={"model": "test", "messages": said})
    assert response.status_code == 200, response.text
