"""A stranger's pickle at each port of each replica: `python -m tests.ray.stranger FOLDER`, under the RAY_AUTH_MODE of the environment.

Runs in namespaces of its own (`namespace.py`): without a token its cluster would run what anyone sends. The payload makes a folder.
Prints one JSON object.
"""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import grpc
import ray
from ray import serve as ray_serve
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from pixellm.errors import ConfigError
from serve.app import build_app, build_application
from serve.cluster import read_authentication_mode
from serve.config import AppConfig
from tests.ray.namespace import bring_loopback_up
from tests.ray.test_serve import free_port
from tests.ray.training_runs import ray_processes
from tests.serve.doubles import build_rule_segmenter


class Payload:
    """Makes a folder in the process that unpickles it."""

    def __init__(self, path: Path):
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (self._path,)


def send(port: int, metadata: Any, argument: Any) -> str:
    """The status of a call of the replica behind `port`, by one who has no token."""
    request = serve_pb2.ASGIRequest(pickled_request_metadata=pickle.dumps(metadata), request_args=pickle.dumps([argument]))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, timeout=10)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def run(folder: Path) -> dict[str, Any]:
    """The answer of the cluster about itself, and whether payloads ran in its replicas."""
    cluster = ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=free_port(),
                       log_to_driver=False, object_store_memory=100_000_000, _temp_dir=str(folder / "r"))
    config = AppConfig(model="models/test", engine={"num_slots": 4}, num_cpus=0.1, port=free_port())
    ray_serve.start(http_options={"host": config.host, "port": config.port})
    ray_serve.run(build_application(config, build_rule_segmenter), name=config.app_name)
    ran, statuses, kinds = 0, [], ("ingress", "model")
    for process in [each for kind in kinds for each in ray_processes(f"ServeReplica:{config.app_name}:{kind}")]:
        marker = folder / f"ran-{process.pid}"
        listening = [each.laddr for each in process.net_connections("tcp") if each.status == "LISTEN"]
        ports = {place.port for place in listening if place.ip in ("::", "0.0.0.0")}
        statuses += [send(port, Payload(marker), None) for port in ports]
        ran += marker.exists()
    try:
        build_app({"model": "models/any"})
        refusal = ""
    except ConfigError as error:
        refusal = str(error)
    mode = read_authentication_mode(f"http://{cluster.dashboard_url}")
    ray.shutdown()
    return {"mode": mode, "num_replicas": len(kinds), "num_ran": ran, "statuses": statuses, "refusal": refusal}


if __name__ == "__main__":
    bring_loopback_up()
    print(json.dumps(run(Path(sys.argv[1]))))
