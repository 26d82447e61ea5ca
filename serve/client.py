"""A Python client of `POST /v1/segment`, typed, which tries again what may go well the next time. Needs no Ray and no torch.

    client = Client("http://127.0.0.1:8000")
    answer = client.segment("photo.jpg", "Which of these can roll?")
    masks = [rle_to_mask(mask.rle) for mask in answer.masks]
"""

import io
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from PIL import Image
from pydantic import BaseModel, ValidationError

from pixellm.errors import ServerError
from pixellm.photos import upright_rgb
from serve.schemas import Problem, SegmentAnswers, SegmentPart, SegmentResponse

Photo = bytes | str | Path | Image.Image  # an encoded file, the path of one, or a picture, which is sent upright and RGB, as PNG
ModelT = TypeVar("ModelT", bound=BaseModel)

_RETRIED_STATUSES = {408, 429, 502, 503}  # the server did not begin to answer, or lost its model; 504 would take as long again
_PROBLEM = "application/problem+json"
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class Client:
    """Asks the server at `url`. Safe for use from several threads; close it, or use it as a context manager.

    A question is asked up to 1 + `max_retries` times, with growing waits, or those that the server wishes. Every method raises ServerError
    with the server's own words, OSError for a photo that cannot be read, and InputError for a picture whose pixels have no known white.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_s: float = 120, max_retries: int = 3,
                 transport: httpx.BaseTransport | None = None, api_key: str | None = None):
        self.url, self._max_retries = url.rstrip("/"), max_retries
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=timeout_s, transport=transport, headers=headers)

    def segment(self, photo: Photo, question: str, max_new_tokens: int | None = None) -> SegmentResponse:
        """One question about one photo; masks come as COCO RLE."""
        with self._post(photo, [question], max_new_tokens) as response:
            return _parse(SegmentResponse, response.read(), self.url)

    def segment_all(self, photo: Photo, questions: Sequence[str], max_new_tokens: int | None = None) -> list[SegmentResponse]:
        """Several questions about one photo, in one request."""
        if len(questions) < 2:
            return [self.segment(photo, question, max_new_tokens) for question in questions]
        with self._post(photo, questions, max_new_tokens) as response:
            return _parse(SegmentAnswers, response.read(), self.url).answers

    def stream(self, photo: Photo, questions: Sequence[str], max_new_tokens: int | None = None) -> Iterator[SegmentPart]:
        """Text, masks and answers as they come. Not tried again once the first part is here."""
        with self._post(photo, questions, max_new_tokens, stream="true") as response:
            for kind, data in _read_events(response.iter_bytes()):
                if kind == "error":
                    problem = _parse(Problem, data, self.url)
                    raise ServerError(problem.status, problem.code, problem.detail)
                yield _parse(SegmentPart, data, self.url)

    @contextmanager
    def _post(self, photo: Photo, questions: Sequence[str], max_new_tokens: int | None, **more: str) -> Iterator[httpx.Response]:
        data = _to_bytes(photo)
        fields: dict[str, Any] = {"question": list(questions), **more} | ({"max_new_tokens": str(max_new_tokens)} if max_new_tokens else {})
        request = self._http.build_request("POST", f"{self.url}/v1/segment", files={"image": data}, data=fields,
                                           headers={"idempotency-key": uuid.uuid4().hex})  # tried again, it is computed once
        response = self._send(request)
        try:
            yield response
        except httpx.HTTPError as error:
            raise _no_answer(self.url, error) from None
        finally:
            response.close()

    def _send(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            is_last = attempt == self._max_retries
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1)
            try:
                response = self._http.send(request, stream=True)
            except httpx.TransportError as error:
                if is_last or isinstance(error, httpx.ReadTimeout | httpx.UnsupportedProtocol):
                    raise _no_answer(self.url, error) from None
            except httpx.HTTPError as error:
                raise _no_answer(self.url, error) from None
            else:
                if response.status_code == 200:
                    return response
                if is_last or not _may_go_well(response):
                    raise self._to_error(response)
                wished = response.headers.get("retry-after", "")
                wait_s = max(wait_s, min(_LONGEST_WAIT_S, float(wished))) if wished.isdigit() else wait_s
                response.close()
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _to_error(self, response: httpx.Response) -> ServerError:
        try:
            problem = Problem.model_validate_json(response.read())
        except (ValueError, httpx.HTTPError):
            return ServerError(response.status_code, "no_problem", f"{self.url} answered {response.status_code}, not as this API does")
        finally:
            response.close()
        return ServerError(problem.status, problem.code, f"{self.url} answered {problem.status}: {problem.detail}")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _may_go_well(response: httpx.Response) -> bool:
    """Tell whether to try again: a 500 in the server's own words would come again, one of a proxy says that it lost the server."""
    is_ours = response.headers.get("content-type", "").startswith(_PROBLEM)
    return response.status_code in _RETRIED_STATUSES or (response.status_code == 500 and not is_ours)


def _read_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Name and data of server-sent events. Lines end with a line feed only: in JSON, U+2028 and U+0085 are letters like any other."""
    kind, rest = "", b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"event":
                kind = value.strip().decode()
            elif field == b"data":
                yield kind, value


def _parse(model: type[ModelT], data: bytes, url: str) -> ModelT:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise ServerError(200, "no_answer_of_ours", f"{url} sent something else than this API's answer ({error.errors()[0]['msg']}); does "
                          "the address lead to the model's server?") from None


def _no_answer(url: str, error: Exception) -> ServerError:
    return ServerError(0, "no_answer", f"no answer from {url} ({error}); is the model deployed there (jobs.deploy)?")


def _to_bytes(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        stream = io.BytesIO()
        upright_rgb(photo).save(stream, "PNG")  # a PNG of ours says nothing about how the photo is turned, and has no CMYK
        return stream.getvalue()
    return Path(photo).read_bytes()
