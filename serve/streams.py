"""Server-sent events (WHATWG HTML, section 9.2): an answer while it is written."""

from collections.abc import AsyncGenerator

from fastapi import Request
from fastapi.responses import StreamingResponse

from serve.problems import log_failure, to_api_error, to_problem

EVENT_STREAM = "text/event-stream"


def server_sent_event(data: str, kind: str | None = None) -> str:
    """`data` of one line, as JSON always is."""
    return (f"event: {kind}\n" if kind else "") + f"data: {data}\n\n"


async def event_stream(events: AsyncGenerator[str, None], request: Request) -> StreamingResponse:
    """A response that sends `events`. It begins with the first one, so that what fails before it has a status of its own.

    A failure after that is an event `error` with a Problem, which also holds OpenAI's `error`.
    """
    first = await anext(events)

    async def body() -> AsyncGenerator[str, None]:
        try:
            yield first
            async for event in events:
                yield event
        except Exception as error:
            log_failure(request.state.request_id, error)
            problem = to_problem(request.state.request_id, to_api_error(error))
            request.state.problem = problem.code
            yield server_sent_event(problem.model_dump_json(), "error")
        finally:
            await events.aclose()

    return StreamingResponse(body(), media_type=EVENT_STREAM, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
