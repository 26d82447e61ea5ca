"""The engine: one thread that runs the model, and streams of events for any number of callers. Knows tokens and masks; no Ray, no HTTP.

    async for event in engine.submit(request): …        # in a coroutine
    for event in engine.submit(request): …              # in a thread
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from pixellm.errors import ModelError
from pixellm.inference.config import EngineConfig
from pixellm.inference.load import EngineLoad
from pixellm.inference.requests import EndEvent, Event, Request
from pixellm.inference.running import Running
from pixellm.inference.stepper import Stepper
from pixellm.memory import keep_freed_memory
from pixellm.model import PixelLMForConditionalGeneration


class EventStream:
    """The events of one request, each given once, with `for` or `async for`; the last one is an EndEvent.

    Leaving an `async for` by cancellation, or closing its iterator, cancels the request.
    """

    def __init__(self, cancel: Callable[[], None]):
        self.cancel = cancel  # ends the request before the next step (`cancelled`); without effect when it is over
        self._events: deque[Event] = deque()
        self._is_over = False
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None

    def __iter__(self) -> Iterator[Event]:
        while not self._is_over:
            with self._changed:
                self._changed.wait_for(lambda: self._events)
            yield self._next()

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        arrived.set()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while not self._is_over:
                await arrived.wait()
                arrived.clear()
                while self._events:
                    yield self._next()
        finally:
            self._wake = None
            if not self._is_over:
                self.cancel()

    def _next(self) -> Event:
        event = self._events.popleft()
        self._is_over = isinstance(event, EndEvent)
        return event

    def put(self, event: Event) -> None:
        """For the engine's thread."""
        with self._changed:
            self._events.append(event)
            self._changed.notify()
        wake = self._wake
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # the caller's loop is closed: nobody listens any more
                self.cancel()


class _Loop:
    """What the thread works on. It does not know its Engine, so that one that nobody holds any more can end it."""

    def __init__(self, stepper: Stepper):
        self.stepper = stepper
        self._inbox: deque[Running] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self.thread = threading.Thread(target=self._run, name="pixellm-engine", daemon=True)
        self.thread.start()

    def put(self, running: Running) -> None:
        with self._changed:
            if self._is_closed:
                raise ModelError("the engine is closed; build a new one")
            self._inbox.append(running)
            self._changed.notify()

    def cancel(self, running: Running) -> None:
        running.is_cancelled = True  # seen before the next step: while anything is to be done, there is a next one

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._inbox or not self.stepper.is_idle)
                arrived, is_closed = list(self._inbox), self._is_closed
                self._inbox.clear()
            for running in arrived:
                try:
                    self.stepper.add(running)
                except Exception as error:
                    self.stepper.fail(running, error)
            if is_closed:
                self.stepper.fail_all("cancelled")
                return
            try:
                self.stepper.step()
            except Exception as error:  # a mistake of ours: nobody may wait for ever because of it
                self.stepper.fail_all("error", error)


class Engine:
    """Answers requests from any thread or coroutine in one running batch. Close it, or use it as a context manager.

    The model is used as it is: in eval mode, on its device, in its dtype. Raises what `Stepper` raises.
    """

    def __init__(self, model: PixelLMForConditionalGeneration, config: EngineConfig | None = None):
        keep_freed_memory()
        self._loop = _Loop(Stepper(model.eval(), config or EngineConfig()))
        self.close = weakref.finalize(self, self._loop.close)  # also when nobody holds the engine any more, or Python ends

    def submit(self, request: Request) -> EventStream:
        """Puts a request into the queue. Raises InputError when it cannot be answered, ModelError when the engine is closed."""
        loop = self._loop
        stream = EventStream(lambda: loop.cancel(running))
        running = loop.stepper.prepare(request, stream.put)
        loop.put(running)
        return stream

    @property
    def load(self) -> EngineLoad:
        """What the engine had to do after its last step."""
        return self._loop.stepper.load

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()
