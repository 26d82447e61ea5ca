"""A running cluster: whether it asks for a token, and how Serve on it is told to start and to stop an application.

Speaks Serve's REST API through Ray's own client. The entry points are `jobs.deploy` and `jobs.undeploy`.
"""

import contextlib
import time
from typing import TYPE_CHECKING, Any

import httpx
import ray
from ray.exceptions import RayError

from pixellm.errors import ConfigError, PixelLMError
from serve.config import AppConfig

if TYPE_CHECKING:  # it brings the dashboard's modules, and replicas import this file
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

DEPLOY_TIMEOUT_S = 900
SERVE_NAMESPACE = "serve"  # of Ray Serve's actors
NUM_IDLE_LOOKS = 3  # in a row: a request may be on its way from a proxy to a replica
DRAINED_ROUTE = "/-/stopping-"  # where an application that stops is moved, followed by its name


def check_token(config: AppConfig, mode: str) -> None:
    """Raise ConfigError where the cluster's authentication `mode` is not `token` and `config` does not allow that."""
    if mode != "token" and not config.allow_cluster_without_token:
        raise ConfigError(f"this Ray cluster asks for no token (authentication mode {mode}), so anyone who reaches a node can run code on "
                          "it: each replica of Ray Serve opens a port on all interfaces and unpickles what arrives. Start every node with "
                          "RAY_AUTH_MODE=token and the same token (`ray get-auth-token --generate`; platform/README.md, 'Token'), or, in a "
                          "network that nothing but the cluster reaches, set allow_cluster_without_token=true")


def read_authentication_mode(address: str) -> str:
    """`token` or `disabled`, from the dashboard at `address`. It starts with the GCS, which refuses every node and every worker that
    sends no token where the mode is `token`: so the mode of the head is that of all replicas. Raises PixelLMError when it does not say."""
    try:
        return str(httpx.get(f"{address}/api/authentication_mode", timeout=30).raise_for_status().json()["authentication_mode"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise PixelLMError(f"{address} does not say whether the cluster asks for a token ({type(error).__name__}: {error}); is it the "
                           f"dashboard of a head with Ray {ray.__version__}?") from None


def build_application_entry(config: AppConfig, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """The entry for Serve's REST API. The time in the environment makes it start new replicas: the model at the same URI may be new."""
    variables = {**runtime_env.get("env_vars", {}), "PIXELLM_DEPLOYED_AT": str(time.time())}
    kept = {key: value for key, value in runtime_env.items() if key in ("working_dir", "py_modules", "pip", "uv", "conda")}
    return {"name": config.app_name, "route_prefix": "/", "import_path": "serve.app:build_app", "args": config.model_dump(mode="json"),
            "runtime_env": {**kept, "env_vars": variables}}


def http_options(config: AppConfig) -> dict[str, Any]:
    """The address and TLS files that Serve listens with."""
    return {"host": config.host, "port": config.port, "ssl_certfile": config.tls_certificate, "ssl_keyfile": config.tls_key}


def deploy(client: "ServeSubmissionClient", config: AppConfig, runtime_env: dict[str, Any]) -> None:
    """Hand the application over. Raises ConfigError when Serve already listens elsewhere, or refuses it."""
    details = client.get_serve_details()
    wanted = http_options(config)
    current = {key: (details.get("http_options") or wanted).get(key) for key in wanted}
    if current != wanted:
        raise ConfigError(f"Serve already listens on {current['host']}:{current['port']} on this cluster; use host={current['host']} "
                          f"port={current['port']} tls_certificate={current['ssl_certfile'] or 'null'}, or stop what is served there with "
                          "`jobs.undeploy`")
    _put(client, [*_others(details, config.app_name), build_application_entry(config, runtime_env)],
         proxy_location="HeadOnly" if config.is_loopback else "EveryNode", http_options=wanted)


def wait_until_running(client: "ServeSubmissionClient", app_name: str, timeout_s: float = DEPLOY_TIMEOUT_S, poll_s: float = 1.0) -> None:
    """Print each change of the application's state. Raises PixelLMError with Serve's message if it does not get to RUNNING."""
    deadline, shown = time.monotonic() + timeout_s, ""
    while True:
        app = client.get_serve_details()["applications"].get(app_name, {"status": "NOT_STARTED", "deployments": {}})
        replicas = [f"{name} {sum(replica['state'] == 'RUNNING' for replica in deployment['replicas'])}/{deployment['target_num_replicas']}"
                    for name, deployment in app["deployments"].items()]
        line = "  ".join([f"serving {app_name}: {app['status'].lower()}", *replicas])
        if line != shown:
            print(line, flush=True)
            shown = line
        if app["status"] == "RUNNING":
            return
        if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > deadline:
            messages = [part.get("message") or "" for part in (app, *app["deployments"].values())]
            raise PixelLMError(" ".join([f"{app_name} is {app['status']}:", *messages]))
        time.sleep(poll_s)


def undeploy(client: "ServeSubmissionClient", app_name: str, timeout_s: float, poll_s: float = 1.0) -> int:
    """Stop an application after its last answer, and Serve with the last application; the number of requests that were cut off.

    Serve's own ways lose requests: `serve shutdown` ends the proxies first, with all that is in flight, and a deletion takes the model
    away from requests that still wait for a place in it. So the application first leaves its route, which new requests then find empty
    (404); when the ingress replicas hold no request any more, or after `timeout_s`, it is deleted. Raises ConfigError for an application
    that is not there, PixelLMError when Serve does not delete it in time.
    """
    details = client.get_serve_details()
    app = details["applications"].get(app_name)
    if app is None:
        raise ConfigError(f"app_name={app_name}: no such application is served on this cluster; there are "
                          f"{', '.join(details['applications']) or 'none'}")
    others = _others(details, app_name)
    if entry := app.get("deployed_app_config"):  # not of one that Python has started, which is deleted at once
        _put(client, [*others, {**entry, "route_prefix": f"{DRAINED_ROUTE}{app_name}"}])
    num_left, num_idle, deadline = 0, 0, time.monotonic() + timeout_s
    while num_idle < NUM_IDLE_LOOKS and time.monotonic() < deadline:
        time.sleep(poll_s)
        num_left = count_requests(client, app_name)
        num_idle = 0 if num_left else num_idle + 1
    _put(client, others)
    deadline = time.monotonic() + timeout_s
    while app_name in client.get_serve_details()["applications"]:
        if time.monotonic() > deadline:
            raise PixelLMError(f"{app_name} was told to stop and is still there after {timeout_s:g} s; look at `serve status`")
        time.sleep(poll_s)
    if not others:
        client.delete_applications()
    return num_left


def count_requests(client: "ServeSubmissionClient", app_name: str) -> int:
    """Requests that the replicas of an application hold at this moment. A replica that is gone holds none."""
    deployments = client.get_serve_details()["applications"].get(app_name, {"deployments": {}})["deployments"].values()
    counts = []
    for replica in (each for deployment in deployments for each in deployment["replicas"]):
        with contextlib.suppress(RayError, ValueError):
            counts.append(ray.get_actor(replica["actor_name"], namespace=SERVE_NAMESPACE).get_num_ongoing_requests.remote())
    return sum(_value(count) for count in counts)


def _value(count: ray.ObjectRef) -> int:
    with contextlib.suppress(RayError):
        return ray.get(count, timeout=10)
    return 0


def _others(details: dict[str, Any], app_name: str) -> list[dict[str, Any]]:
    """The entries of all applications but one: Serve stops what a request leaves out."""
    deployed = {name: app.get("deployed_app_config") for name, app in details["applications"].items()}
    return [entry for name, entry in deployed.items() if entry and name != app_name]


def _put(client: "ServeSubmissionClient", applications: list[dict[str, Any]], **more: Any) -> None:
    try:
        client.deploy_applications({**more, "applications": applications})
    except RuntimeError as error:
        raise ConfigError(f"Serve refused the application: {error}") from None
