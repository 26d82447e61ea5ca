"""s3.py without a store: what both clients are told, and what is said of settings that do not hold."""

from pathlib import Path

import pytest

from pixellm import s3, storage
from pixellm.errors import StorageError

RENEWING = """[profile renewing]
credential_process = {python} {script}
"""
SCRIPT = """import json, datetime, pathlib
calls = pathlib.Path({calls!r})
number = int(calls.read_text() or 0) + 1 if calls.exists() else 1
calls.write_text(str(number))
soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)  # so near its end that every use renews it
print(json.dumps({{"Version": 1, "AccessKeyId": f"key{{number}}", "SecretAccessKey": "s", "SessionToken": f"t{{number}}",
                  "Expiration": soon.isoformat()}}))
"""


def options_of(filesystem) -> dict:
    return filesystem.__reduce__()[1][0]


def test_aws_itself_and_a_session_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c",
                        "AWS_REGION": "eu-west-3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", "/a/bundle.pem")
    assert s3.read_s3_settings() == s3.S3Settings(None, "eu-west-3", "/a/bundle.pem", access_key="a", secret_key="b", session_token="c")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    options = options_of(storage.open_filesystem("s3://b/x")[0])
    assert (options["session_token"], options["endpoint_override"], options["region"]) == ("c", "", "eu-west-3")
    assert s3.boto3_client().meta.endpoint_url == "https://s3.eu-west-3.amazonaws.com"


def test_configured_endpoints_can_be_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert s3.read_s3_settings().endpoint == "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert s3.read_s3_settings().endpoint is None and "amazonaws.com" in s3.boto3_client().meta.endpoint_url


def test_keys_that_expire_are_renewed_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "keys.py").write_text(SCRIPT.format(calls=str(tmp_path / "calls")))
    (tmp_path / "config").write_text(RENEWING.format(python=sys.executable, script=tmp_path / "keys.py"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "renewing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    keys = [options_of(storage.open_filesystem("s3://b/x")[0])["access_key"] for _ in range(3)]
    assert len(set(keys)) == 3, "each filesystem has keys of its own moment"


def test_a_machines_role_is_left_to_pyarrow_which_renews_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Role:
        method = "iam-role"

        def get_frozen_credentials(self):
            raise AssertionError("keys of a role would end with their hour")

    settings = s3.S3Settings("http://127.0.0.1:9", "us-east-1")
    monkeypatch.setattr(s3, "_read_environment", lambda _: (None, Role(), settings))
    assert s3.read_s3_settings() == settings
    assert options_of(s3.arrow_filesystem())["access_key"] is None


@pytest.mark.parametrize(("environment", "message"), [
    ({"AWS_PROFILE": "no-such"}, "no-such"), ({"AWS_ENDPOINT_URL": "127.0.0.1:8333"}, "an endpoint is written http://host:port"),
    ({"AWS_ENDPOINT_URL_S3": "not a url"}, "not a url"), ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY")])
def test_settings_that_do_not_hold_are_named(environment, message, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="the AWS settings cannot be used") as error:
        storage.read_bytes("s3://b/x")
    assert message in str(error.value)
