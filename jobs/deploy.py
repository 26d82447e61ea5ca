"""Deploys a model on the running cluster and waits until it answers: `python -m jobs.deploy --config serve/configs/tiny.yaml`.

The application stays when the job ends; other applications are left as they are.
"""

import sys
import time
from typing import Any

import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from pixellm.errors import ConfigError, PixelLMError
from pixellm.settings import parse_command_line
from serve.config import AppConfig

DEPLOY_TIMEOUT_S = 900


def build_application_entry(config: AppConfig, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """What Serve's REST API wants. The time in the environment makes it start new replicas: the model at the same URI may be new."""
    variables = {**runtime_env.get("env_vars", {}), "PIXELLM_DEPLOYED_AT": str(time.time())}
    kept = {key: value for key, value in runtime_env.items() if key in ("working_dir", "py_modules", "pip", "uv", "conda")}
    return {"name": config.app_name, "route_prefix": "/", "import_path": "serve.app:build_app", "args": config.model_dump(mode="json"),
            "runtime_env": {**kept, "env_vars": variables}}


def http_options(config: AppConfig) -> dict[str, Any]:
    """Where and how Serve listens."""
    return {"host": config.host, "port": config.port, "ssl_certfile": config.tls_certificate, "ssl_keyfile": config.tls_key}


def deploy(client: ServeSubmissionClient, config: AppConfig, runtime_env: dict[str, Any]) -> None:
    """Hand the application over. Raises ConfigError when Serve already listens elsewhere, or refuses it."""
    details = client.get_serve_details()
    wanted = http_options(config)
    current = {key: (details.get("http_options") or wanted).get(key) for key in wanted}
    if current != wanted:
        raise ConfigError(f"Serve already listens on {current['host']}:{current['port']} on this cluster; use host={current['host']} "
                          f"port={current['port']} tls_certificate={current['ssl_certfile'] or 'null'}, or stop it with `serve shutdown`")
    deployed = {name: app.get("deployed_app_config") for name, app in details["applications"].items()}
    others = [entry for name, entry in deployed.items() if entry and name != config.app_name]
    request = {"proxy_location": "HeadOnly" if config.is_loopback else "EveryNode",
               "http_options": wanted, "applications": [*others, build_application_entry(config, runtime_env)]}
    try:
        client.deploy_applications(request)
    except RuntimeError as error:
        raise ConfigError(f"Serve refused the application: {error}") from None


def wait_until_running(client: ServeSubmissionClient, app_name: str, timeout_s: float = DEPLOY_TIMEOUT_S, poll_s: float = 1.0) -> None:
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


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(AppConfig, __doc__ or "", argv)
    cluster = ray.init(address="auto", ignore_reinit_error=True)
    try:
        client = ServeSubmissionClient(f"http://{cluster.dashboard_url}")
        deploy(client, config, dict(ray.get_runtime_context().runtime_env))
        wait_until_running(client, config.app_name)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"serving {config.model} at http{'s' if config.tls_key else ''}://{config.host}:{config.port}/v1/segment, documented at /docs")


if __name__ == "__main__":
    main()
