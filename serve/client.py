"""A Python client of `POST /v1/segment`, typed, which tries again what may go well the next time. Needs no Ray and no torch.

    client = Client("http://127.0.0.1:8000")
    answer = client.segment("photo.jpg", "Which of these can roll?")
    masks = [rle_to_mask(mask.rle) for mask in answer.masks]
"""

import io
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from pixellm.errors import ServerError
from serve.schemas import Problem, SegmentAnswers, SegmentPart, SegmentResponse

Photo = bytes | str | Path | Image.Image  # an encoded file, the path of one, or a picture, which is sent as PNG

_RETRIED_STATUSES = {408, 429, 502, 503}  # the server did not begin to answer, or lost its model; 504 would take as long again
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class Client:
    """Asks the server at `url`. Safe for use from several threads; close it, or use it as a context manager.

    A question is asked up to 1 + `max_retries` times, with growing waits, or those that the server wishes. Every method raises ServerError
    with the server's own words, and OSError for a photo that cannot be read.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", timeout_s: float = 120, max_retries: int = 3,
                 transport: httpx.BaseTransport | None = None, api_key: str | None = None):
        self.url, self._max_retries = url.rstrip("/"), max_retries
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=timeout_s, transport=transport, headers=headers)

    def segment(self, photo: Photo, question: str, max_new_tokens: int | None = None) -> SegmentResponse:
        """One question about one photo; masks come as COCO RLE."""
        with self._post(photo, [question], max_new_tokens) as response:
            return SegmentResponse.model_validate_json(response.read())

    def segment_all(self, photo: Photo, questions: Sequence[str], max_new_tokens: int | None = None) -> list[SegmentResponse]:
        """Several questions about one photo, in one request."""
        if len(questions) < 2:
            return [self.segment(photo, question, max_new_tokens) for question in questions]
        with self._post(photo, questions, max_new_tokens) as response:
            return SegmentAnswers.model_validate_json(response.read()).answers

    def stream(self, photo: Photo, questions: Sequence[str], max_new_tokens: int | None = None) -> Iterator[SegmentPart]:
        """Text, masks and answers as they come. Not tried again once the first part is here."""
        with self._post(photo, questions, max_new_tokens, stream="true") as response:
            kind = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data" and kind == "error":
                    problem = Problem.model_validate_json(value)
                    raise ServerError(problem.status, problem.code, problem.detail)
                elif field == "data":
                    yield SegmentPart.model_validate_json(value)

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
                if is_last or response.status_code not in _RETRIED_STATUSES:
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


def _no_answer(url: str, error: Exception) -> ServerError:
    return ServerError(0, "no_answer", f"no answer from {url} ({error}); is the model deployed there (jobs.deploy)?")


def _to_bytes(photo: Photo) -> bytes:
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, Image.Image):
        stream = io.BytesIO()
        photo.save(stream, "PNG")
        return stream.getvalue()
    return Path(photo).read_bytes()
