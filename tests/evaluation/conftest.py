"""A server on the loopback that speaks chat completions and says what it is told to say."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class ChatServer:
    """`replies` are given in turn, the last one for ever; `bodies` are the requests."""

    def __init__(self) -> None:
        self.replies: list[str] = [""]
        self.bodies: list[dict] = []
        self.url = ""

    def reply(self, body: dict) -> bytes:
        self.bodies.append(body)
        content = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return json.dumps({"model": "judge", "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
                           "usage": {"prompt_tokens": 9, "completion_tokens": 3}}).encode()


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    chat = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = chat.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield chat
    server.shutdown()
    thread.join()
