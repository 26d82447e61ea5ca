"""Clients that never finish a request, while others ask: `python -m tests.platform.slow_clients FOLDER`, with platform/serve.sh sourced.

HAProxy, configured and started as Ray Serve does, stands before the HTTP face of an ingress replica; Ray does not run here. It listens on
all interfaces, so this runs in namespaces of its own (`tests/ray/namespace.py`). Attackers come from one address, those who ask
from another one, and then from that of the attackers. Prints one JSON object: what became of the questions, and memory.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import uvicorn
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig, get_haproxy_binary
from ray.serve.config import HTTPOptions

from serve.config import AppConfig
from serve.ingress import build_api
from tests.ray.namespace import bring_loopback_up
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import photo_bytes

PORT, BACKEND_PORT, ATTACKER, ASKER = 8000, 8001, "127.0.0.1", "127.0.0.2"
NUM_HALF_HEADERS, NUM_SLOW_BODIES, NUM_QUESTIONS = 1100, 70, 30
BODY_BYTES = 15_000_000
SENT_AT_ONCE_BYTES = 3_900_000  # less than HAProxy's buffer, which waits for more
# Headers that Ray Serve obeys, and that no client may send.
OF_RAY = {"x-request-disconnect-disabled", "x-request-timeout-seconds", "serve_multiplexed_model_id", "serve-multiplexed-model-id",
          "x-session-id", "x-serve-router-replica"}
HEAD = f"POST /v1/segment?question=which HTTP/1.1\r\nHost: {ATTACKER}\r\nContent-Type: image/png\r\n"


class Attack:
    """Connections that send a byte now and then; one that is closed is opened again."""

    def __init__(self) -> None:
        self.num_open, self.num_closed = 0, 0

    async def run(self, first: bytes, drop: bytes) -> None:
        """One connection after another: `first` at once, then `drop` each second."""
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", PORT, local_addr=(ATTACKER, 0))
            except OSError:
                await asyncio.sleep(1)
                continue
            self.num_open += 1
            try:
                writer.write(first)
                while True:
                    await asyncio.sleep(1)
                    writer.write(drop)
                    async with asyncio.timeout(1):
                        await writer.drain()
            except (OSError, TimeoutError):
                pass
            finally:
                self.num_open -= 1
                self.num_closed += 1
                writer.close()


async def ask(address: str) -> tuple[Counter[str], list[float]]:
    """NUM_QUESTIONS of one client at `address`, each over a connection of its own."""
    statuses: Counter[str] = Counter()
    took_s = []
    connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        for _ in range(NUM_QUESTIONS):
            started = time.monotonic()
            try:
                async with session.post(f"http://127.0.0.1:{PORT}/v1/segment", params={"question": "which half?"}, data=photo_bytes(),
                                        headers={"content-type": "image/png"}) as response:
                    await response.read()
                    statuses[str(response.status)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                statuses[type(error).__name__] += 1
            took_s.append(round(time.monotonic() - started, 2))
    return statuses, took_s


def memory_mb(name: str) -> int:
    """Resident memory of all processes of this name."""
    found = [each.info for each in psutil.process_iter(["name", "memory_info"]) if each.info["name"] == name]
    return round(sum(each["memory_info"].rss for each in found) / 1e6)


async def attack_and_ask() -> dict[str, Any]:
    """Memory before, and the questions while all attackers are there."""
    await ask(ASKER)
    before = {"haproxy_before_mb": memory_mb("haproxy")}
    headers, bodies = Attack(), Attack()
    body = f"{HEAD}Content-Length: {BODY_BYTES}\r\n\r\n".encode() + b"x" * SENT_AT_ONCE_BYTES
    tasks = [asyncio.create_task(headers.run(f"{HEAD}X-Slow: ".encode(), b"a")) for _ in range(NUM_HALF_HEADERS)]
    tasks += [asyncio.create_task(bodies.run(body, b"x")) for _ in range(NUM_SLOW_BODIES)]
    await asyncio.sleep(5)
    opened = {"num_half_headers": headers.num_open, "num_slow_bodies": bodies.num_open}
    results, peak_mb = {}, 0
    for who, address in (("another_address", ASKER), ("the_attackers_address", ATTACKER)):
        started = time.monotonic()
        statuses, took_s = await ask(address)
        peak_mb = max(peak_mb, memory_mb("haproxy"))
        results[who] = {"statuses": dict(statuses), "latency_s_median_max": [sorted(took_s)[len(took_s) // 2], max(took_s)],
                        "took_s": round(time.monotonic() - started, 1)}
    await asyncio.sleep(35)  # longer than bodies have
    closed = {"num_half_headers_cut_off": headers.num_closed, "num_slow_bodies_cut_off": bodies.num_closed}
    peak_mb = max(peak_mb, memory_mb("haproxy"))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=10)
    return {**opened, **results, **closed, **before, "haproxy_mb": peak_mb}


class Backend(threading.Thread):
    """The HTTP face that runs in an ingress replica, with a rule in place of the models."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        config = AppConfig(model="models/test", api_keys=())
        self.seen_headers: list[set[str]] = []
        self._api = build_api(config, RuleModel())

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/-/healthz":  # Ray's, which its HAProxy asks
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return await send({"type": "http.response.body", "body": b"success"})
        if scope["type"] == "http":
            self.seen_headers.append({name.decode("latin-1") for name, _ in scope["headers"]})
        await self._api(scope, receive, send)

    def run(self) -> None:
        uvicorn.run(self._serve, host="127.0.0.1", port=BACKEND_PORT, log_level="error", interface="asgi3", lifespan="off")


def start_haproxy(folder: Path) -> subprocess.Popen[bytes]:
    """As Ray Serve does it: its configuration for one application, and the program that RAY_SERVE_HAPROXY_BINARY_PATH names."""
    config = HAProxyConfig(socket_path=str(folder / "admin.sock"), server_state_base=str(folder), server_state_file=str(folder / "state"),
                           metrics_socket_path=str(folder / "metrics.sock"), http_options=HTTPOptions(host="0.0.0.0", port=PORT))
    config.has_received_routes = config.has_received_servers = True
    server = ServerConfig(name="ingress", host="127.0.0.1", port=BACKEND_PORT)
    backends = {"pixellm": BackendConfig(name="pixellm", path_prefix="/", app_name="pixellm", servers=[server])}
    file = folder / "haproxy.cfg"
    HAProxyApi(config, backends, config_file_path=str(file))._generate_config_file_internal()
    return subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(file), "-dR"], stderr=(folder / "haproxy.log").open("wb"))


def run(folder: Path) -> dict[str, Any]:
    """HAProxy before one ingress, and the attack on them."""
    backend = Backend()
    backend.start()
    haproxy = start_haproxy(folder)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{PORT}/livez").status_code == 200:
                    break
            assert time.monotonic() < deadline and haproxy.poll() is None, (folder / "haproxy.log").read_text()
            time.sleep(0.1)
        httpx.get(f"http://127.0.0.1:{PORT}/livez", headers=dict.fromkeys(OF_RAY, "1") | {"x-kept": "1"})
        dropped = sorted(OF_RAY - backend.seen_headers[-1]) if "x-kept" in backend.seen_headers[-1] else []
        slow_answer = httpx.post(f"http://127.0.0.1:{PORT}/v1/segment", params={"question": "which"}, content=photo_bytes("PNG", (64, 64)),
                                 headers={"content-type": "image/png"}, timeout=60).status_code
        return asyncio.run(attack_and_ask()) | {"headers_dropped": dropped, "plain_question": slow_answer}
    finally:
        haproxy.terminate()
        haproxy.wait(20)


if __name__ == "__main__":
    bring_loopback_up()
    print(json.dumps(run(Path(sys.argv[1]))))
