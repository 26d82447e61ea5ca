"""The deploying job against a stand-in for Serve's REST client; tests/ray deploys for real."""

import pytest

from jobs.deploy import build_application_entry, deploy, http_options, wait_until_running
from pixellm.errors import ConfigError, PixelLMError
from serve.config import AppConfig

CONFIG = AppConfig(model="models/any", port=8123)


class StandInClient:
    """Answers `get_serve_details` with the given ones in turn, the last one for ever."""

    def __init__(self, *details, refusal=None):
        self.details, self.refusal, self.deployed = list(details), refusal, None

    def get_serve_details(self):
        return self.details.pop(0) if len(self.details) > 1 else self.details[0]

    def deploy_applications(self, config):
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.deployed = config


def details(status="RUNNING", message="", running=1, **more):
    deployment = {"target_num_replicas": 1, "replicas": [{"state": "RUNNING"}] * running, "message": ""}
    return {"applications": {"pixellm": {"status": status, "message": message, "deployments": {"model": deployment}}}, **more}


def test_the_request_has_the_address_and_the_validated_arguments():
    client = StandInClient({"applications": {}})
    deploy(client, CONFIG, {"working_dir": "gcs://package.zip", "env_vars": {"A": "1"}, "_ray_commit": "x"})
    assert client.deployed["http_options"] == {"host": "127.0.0.1", "port": 8123, "ssl_certfile": None, "ssl_keyfile": None}
    assert client.deployed["proxy_location"] == "HeadOnly"
    [entry] = client.deployed["applications"]
    assert entry["import_path"] == "serve.app:build_app" and AppConfig.model_validate(entry["args"]) == CONFIG
    assert entry["runtime_env"]["working_dir"] == "gcs://package.zip" and entry["runtime_env"]["env_vars"]["A"] == "1"
    assert "_ray_commit" not in entry["runtime_env"]


def test_a_certificate_makes_the_server_https():
    from ray.serve.schema import ServeDeploySchema

    client = StandInClient({"applications": {}})
    deploy(client, CONFIG.model_copy(update={"tls_certificate": "/tls/tls.crt", "tls_key": "/tls/tls.key"}), {})
    assert client.deployed["http_options"] == {"host": "127.0.0.1", "port": 8123, "ssl_certfile": "/tls/tls.crt",
                                               "ssl_keyfile": "/tls/tls.key"}
    assert set(client.deployed["http_options"]) <= set(ServeDeploySchema.model_fields["http_options"].annotation.model_fields)
    with pytest.raises(ConfigError, match=r"tls_certificate=/tls/old\.crt"):
        deploy(StandInClient(details(http_options={"host": "127.0.0.1", "port": 8123, "ssl_certfile": "/tls/old.crt"})), CONFIG, {})


def test_the_request_is_what_serves_schema_accepts():
    from ray.serve.schema import ServeDeploySchema

    entry = build_application_entry(CONFIG, {})
    assert set(entry) <= set(ServeDeploySchema.model_fields["applications"].annotation.__args__[0].model_fields)
    ServeDeploySchema.model_validate({"http_options": http_options(CONFIG), "applications": [entry]})


def test_each_deployment_differs_so_that_new_weights_are_loaded():
    assert build_application_entry(CONFIG, {})["runtime_env"] != build_application_entry(CONFIG, {})["runtime_env"]


def test_other_applications_stay():
    other = {"name": "other", "import_path": "a:b", "route_prefix": "/other"}
    apps = {"other": {"deployed_app_config": other}, "pixellm": {"deployed_app_config": {"name": "pixellm"}},
            "by_hand": {"deployed_app_config": None}}
    client = StandInClient({"applications": apps})
    deploy(client, CONFIG, {})
    assert [entry["name"] for entry in client.deployed["applications"]] == ["other", "pixellm"]


def test_a_server_that_listens_elsewhere_is_named():
    client = StandInClient(details(http_options={"host": "127.0.0.1", "port": 8000, "root_path": ""}))
    with pytest.raises(ConfigError, match=r"127.0.0.1:8000.*port=8000"):
        deploy(client, CONFIG, {})
    assert client.deployed is None


def test_a_refusal_is_passed_on():
    with pytest.raises(ConfigError, match="duplicate route"):
        deploy(StandInClient({"applications": {}}, refusal="duplicate route"), CONFIG, {})


def test_waiting_shows_each_state_once(capsys):
    states = [{"applications": {}}, details("DEPLOYING", running=0), details("DEPLOYING", running=0), details()]
    wait_until_running(StandInClient(*states), "pixellm", poll_s=0)
    assert capsys.readouterr().out.splitlines() == [
        "serving pixellm: not_started", "serving pixellm: deploying  model 0/1", "serving pixellm: running  model 1/1"]


def test_a_failed_deployment_ends_with_its_message():
    with pytest.raises(PixelLMError, match=r"DEPLOY_FAILED.*no such model"):
        wait_until_running(StandInClient(details("DEPLOY_FAILED", "no such model")), "pixellm", poll_s=0)


def test_a_deployment_that_takes_too_long_ends_with_its_message():
    with pytest.raises(PixelLMError, match=r"DEPLOYING.*waiting for CPUs"):
        wait_until_running(StandInClient(details("DEPLOYING", "waiting for CPUs")), "pixellm", timeout_s=-1, poll_s=0)
