"""Deploys a model on the running cluster and waits until it answers: `python -m jobs.deploy --config serve/configs/tiny.yaml`.

The application stays when the job ends; other applications are left as they are. `jobs.undeploy` stops it.
"""

import sys

import ray
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from pixellm.errors import PixelLMError
from pixellm.settings import parse_command_line
from serve.cluster import check_token, deploy, read_authentication_mode, wait_until_running
from serve.config import AppConfig


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(AppConfig, __doc__ or "", argv)
    cluster = ray.init(address="auto", ignore_reinit_error=True)
    address = f"http://{cluster.dashboard_url}"
    try:
        check_token(config, read_authentication_mode(address))
        client = ServeSubmissionClient(address)
        deploy(client, config, dict(ray.get_runtime_context().runtime_env))
        wait_until_running(client, config.app_name)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"serving {config.model} at http{'s' if config.tls_key else ''}://{config.host}:{config.port}/v1/segment, documented at /docs")


if __name__ == "__main__":
    main()
