"""Deploying and stopping against a stand-in for Serve's REST client; tests/ray does both for real."""

import http.server
import threading

import pytest
import ray

from pixellm.errors import ConfigError, PixelLMError
from serve.cluster import (
    build_application_entry,
    check_token,
    count_requests,
    deploy,
    http_options,
    read_authentication_mode,
    undeploy,
    wait_until_running,
)
from serve.config import AppConfig

CONFIG = AppConfig(model="models/any", port=8123)


class StandInClient:
    """Answers `get_serve_details` with the given ones in turn, the last one for ever."""

    def __init__(self, *details, refusal=None):
        self.details, self.refusal, self.deployed, self.requests = list(details), refusal, None, []

    def get_serve_details(self):
        return self.details.pop(0) if len(self.details) > 1 else self.details[0]

    def deploy_applications(self, config):
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.deployed = config
        self.requests.append(config)

    def delete_applications(self):
        self.requests.append("delete everything")


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


@pytest.fixture
def dashboard():
    """`dashboard(status, body)` is the address of one that answers so; `dashboard.paths` are what it was asked for, and its headers."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, dict(self.headers)))
            status, body = answer
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    seen, answer = [], (200, b"")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(status: int, body: bytes) -> str:
        nonlocal answer
        answer = status, body
        return f"http://127.0.0.1:{server.server_address[1]}"

    start.seen = seen
    yield start
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_the_cluster_itself_is_asked_and_without_a_token(dashboard, mode):
    """A driver that sends a token is answered by a cluster without one, too: its own mode says nothing."""
    assert read_authentication_mode(dashboard(200, b'{"authentication_mode": "%s"}' % mode.encode())) == mode
    [(path, headers)] = dashboard.seen
    assert path == "/api/authentication_mode" and "authorization" not in {name.lower() for name in headers}


@pytest.mark.parametrize("status, body", [(404, b"{}"), (200, b"<html>"), (200, b"{}"), (500, b'{"authentication_mode": "token"}')])
def test_a_dashboard_that_does_not_say_is_no_token(dashboard, status, body):
    with pytest.raises(PixelLMError, match="does not say whether the cluster asks for a token"):
        read_authentication_mode(dashboard(status, body))


@pytest.mark.parametrize("mode", ["disabled", "unknown", ""])
def test_a_cluster_without_a_token_is_refused_with_what_to_do(mode):
    with pytest.raises(ConfigError, match=r"unpickles what arrives.*RAY_AUTH_MODE=token.*allow_cluster_without_token=true"):
        check_token(CONFIG, mode)
    check_token(CONFIG.model_copy(update={"allow_cluster_without_token": True}), mode)
    check_token(CONFIG, "token")


def test_an_application_leaves_its_route_before_it_is_deleted_and_serve_ends_with_the_last(monkeypatch):
    counts = iter([2, 0, 1, 0, 0, 0])
    monkeypatch.setattr("serve.cluster.count_requests", lambda client, app_name: next(counts))
    entry = {"name": "pixellm", "route_prefix": "/", "import_path": "serve.app:build_app"}
    running = {"applications": {"pixellm": {"deployed_app_config": entry}}}
    client = StandInClient(running, running, {"applications": {}})
    assert undeploy(client, "pixellm", timeout_s=60, poll_s=0) == 0
    assert client.requests == [{"applications": [{**entry, "route_prefix": "/-/stopping-pixellm"}]}, {"applications": []},
                               "delete everything"]
    assert next(counts, None) is None  # three looks in a row found no request


def test_other_applications_live_on_and_what_is_cut_off_is_counted(monkeypatch):
    monkeypatch.setattr("serve.cluster.count_requests", lambda client, app_name: 5)
    other = {"name": "other", "route_prefix": "/other", "import_path": "a:b"}
    apps = {name: {"deployed_app_config": {"name": name} if name == "pixellm" else other} for name in ("pixellm", "other")}
    client = StandInClient({"applications": apps}, {"applications": {"other": apps["other"]}})
    assert undeploy(client, "pixellm", timeout_s=0.01, poll_s=0.02) == 5
    assert [[entry["name"] for entry in request["applications"]] for request in client.requests] == [["other", "pixellm"], ["other"]]


def test_stopping_what_is_not_there_names_what_is():
    with pytest.raises(ConfigError, match="app_name=pixelm: no such application is served on this cluster; there are pixellm"):
        undeploy(StandInClient(details()), "pixelm", timeout_s=1)


def test_a_replica_that_is_gone_holds_no_request(monkeypatch):
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: (_ for _ in ()).throw(ValueError(f"no actor {name}")))
    found = details()
    found["applications"]["pixellm"]["deployments"]["model"]["replicas"] = [{"state": "RUNNING", "actor_name": "SERVE_REPLICA::x"}]
    assert count_requests(StandInClient(found), "pixellm") == 0 == count_requests(StandInClient(found), "other")
