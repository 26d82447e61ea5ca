"""Stops a deployment after its last answer: `python -m jobs.undeploy app_name=pixellm`.

New requests hear 404 at once; those in flight get their answers, for as long as `timeout_s`. Other applications are left as they are;
with the last one Serve itself ends. `serve shutdown` in its place cuts off what is in flight.
"""

import sys

import ray
from pydantic import Field, PositiveFloat
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from pixellm.errors import PixelLMError
from pixellm.settings import StrictModel, parse_command_line
from serve.cluster import undeploy


class UndeployConfig(StrictModel):
    """The application that stops, and the time that it has."""

    app_name: str = Field(default="pixellm", min_length=1, description="name of the application on the cluster")
    timeout_s: PositiveFloat = Field(default=240, description="how long requests in flight may take: twice the deployment's "
                                     "request_timeout_s, or more")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(UndeployConfig, __doc__ or "", argv)
    cluster = ray.init(address="auto", ignore_reinit_error=True)
    try:
        num_lost = undeploy(ServeSubmissionClient(f"http://{cluster.dashboard_url}"), config.app_name, config.timeout_s)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    lost = f"; {num_lost} requests had no answer after {config.timeout_s:g} s and were cut off" if num_lost else ""
    print(f"{config.app_name} has stopped{lost}")


if __name__ == "__main__":
    main()
