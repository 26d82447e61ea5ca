"""Who comes in: keys, their limits, the machine itself where there are none; and what browsers may do."""

import asyncio
import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from pixellm.errors import ConfigError
from pixellm.settings import build_config
from serve.access import OPEN_PATHS, TokenBucket
from serve.config import AppConfig
from serve.ingress import build_api
from serve.keys import ApiKey, find_key, hash_key, make_key
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import CONFIG, as_form, assert_problem, call, photo_bytes

KEYS = {"alice": "pxl_alice", "bob": "pxl_bob", "gone": "pxl_gone"}
PAST, FUTURE = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))


def keys(**alice) -> tuple[ApiKey, ...]:
    expiry = {"alice": FUTURE, "gone": PAST}
    return tuple(ApiKey(name=name, sha256=hash_key(key), expires=expiry.get(name), **(alice if name == "alice" else {}))
                 for name, key in KEYS.items())


GUARDED = CONFIG.model_copy(update={"api_keys": keys(), "host": "0.0.0.0"})


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS.get(name, name)}"}


def all_routes() -> list[tuple[str, str]]:
    """(method, path) of everything that the app answers, with paths filled in."""
    routes = []
    for route in build_api(GUARDED, RuleModel()).routes:
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        path = "/web/app.js" if path == "/web" else path
        routes += [(method, path) for method in sorted(getattr(route, "methods", None) or {"GET"})]
    return routes


@pytest.mark.parametrize("method, path", all_routes())
def test_every_route_but_the_open_ones_asks_for_a_key(method, path):
    if path in OPEN_PATHS or path == "/web/app.js":
        assert call(method, path, config=GUARDED).status_code == 200
        return
    for headers, code in [({}, "key_missing"), (bearer("wrong"), "key_wrong"), (bearer("gone"), "key_expired"),
                          ({"x-api-key": ""}, "key_wrong"), ({"authorization": "Basic !"}, "key_wrong"),
                          ({"authorization": f"Digest {KEYS['alice']}"}, "key_missing")]:
        response = call(method, path, config=GUARDED, headers=headers)
        assert response.status_code == 401 and response.headers["www-authenticate"], (path, headers)
        if method != "HEAD":
            assert_problem(response, 401, code)
    assert call(method, path, config=GUARDED, headers=bearer("alice")).status_code not in (401, 403)


def test_there_are_routes_to_walk():
    assert {"/v1/segment", "/v1/chat/completions", "/docs", "/openapi.json", *OPEN_PATHS} <= {path for _, path in all_routes()}


@pytest.mark.parametrize("headers", [
    bearer("bob"), {"x-api-key": KEYS["bob"]}, {"authorization": "Basic " + base64.b64encode(f"me:{KEYS['bob']}".encode()).decode()}])
def test_a_key_comes_in_three_ways_and_its_name_is_the_engines_client(headers):
    model = RuleModel()
    assert call("POST", "/v1/segment", model, GUARDED, headers=headers, **as_form(photo_bytes())).status_code == 200
    assert [ask.options.client for ask in model.asks] == ["bob"]


def test_every_key_is_compared_whatever_was_found(monkeypatch):
    compared = []
    monkeypatch.setattr("serve.keys.hmac.compare_digest", lambda one, other: compared.append(other) or one == other)
    found = [find_key(key, keys()) for key in (*KEYS.values(), "", "none")]
    assert [each and each.name for each in found] == [*KEYS, None, None]
    assert compared == [key.sha256 for key in keys()] * 5


def test_a_made_key_fits_its_entry_and_only_that():
    (key, entry), (other, _) = make_key("alice"), make_key("alice")
    assert find_key(key, [entry]) is entry and find_key(other, [entry]) is None
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest() and key not in str(entry)
    with pytest.raises(ConfigError, match="name"):
        make_key("two words")


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = TokenBucket(per_minute=30, burst=3, now_s=0)
    assert [bucket.take(0) for _ in range(4)] == [0, 0, 0, 2]
    assert bucket.take(1) == 1 and bucket.take(2) == 0 and bucket.take(2) == 2
    taken = sum(bucket.take(2 + second / 10) == 0 for second in range(6000))
    assert taken == 299  # ten minutes of 30, but for the last tenth of a second
    assert [bucket.take(1e6) for _ in range(4)] == [0, 0, 0, 2]  # never more than the burst


def test_a_key_that_asks_too_often_waits_and_others_do_not():
    config = GUARDED.model_copy(update={"api_keys": keys(requests_per_minute=1, burst=2)})

    async def use(client):
        return [await client.get("/v1/models", headers=bearer(name)) for name in ("alice", "alice", "alice", "bob")]

    *answers, refused, other = session(use, RuleModel(), config)
    assert [answer.status_code for answer in [*answers, other]] == [200] * 3
    assert_problem(refused, 429, "key_rate")
    assert 58 <= int(refused.headers["retry-after"]) <= 60


def test_a_key_with_too_many_requests_on_their_way_waits():
    config = GUARDED.model_copy(update={"api_keys": keys(max_concurrent=1), "request_timeout_s": 0.3})

    async def use(client):
        waiting = asyncio.create_task(client.post("/v1/segment", headers=bearer("alice"), **as_form(photo_bytes(), "wait")))
        await asyncio.sleep(0.1)
        refused = await client.get("/v1/models", headers=bearer("alice"))
        other = await client.get("/v1/models", headers=bearer("bob"))
        return refused, other, await waiting, await client.get("/v1/models", headers=bearer("alice"))

    refused, other, late, after = session(use, RuleModel(), config)
    assert_problem(refused, 429, "key_busy")
    assert refused.headers["retry-after"] == "1"
    assert (other.status_code, late.status_code, after.status_code) == (200, 504, 200)


def session(use, model, config, client=("127.0.0.1", 1)):
    """What `use(client)` gives, with requests from the address `client` that all reach one API."""
    async def run():
        transport = httpx.ASGITransport(build_api(config, model), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await use(http)

    return asyncio.run(run())


@pytest.mark.parametrize("address, status", [("127.0.0.1", 200), ("::1", 200), ("127.8.8.8", 200), ("10.0.0.5", 403), ("203.0.113.9", 403),
                                             ("::ffff:10.0.0.5", 403), ("", 403), ("unix", 403)])
def test_without_keys_only_this_machine_is_let_in(address, status):
    response = session(lambda http: http.get("/v1/models"), RuleModel(), CONFIG, (address, 1))
    assert response.status_code == status
    if status == 403:
        assert_problem(response, 403, "key_not_configured")


@pytest.mark.parametrize("values, message", [
    ({"host": "0.0.0.0"}, "host is 0.0.0.0, which others can reach"), ({"host": "::"}, "which others can reach"),
    ({"host": "gpu-7"}, "which others can reach"), ({"tls_key": "a.pem"}, "go together"), ({"cors_origins": ["*"]}, "name the origins"),
    ({"api_keys": [{"name": "a", "sha256": "0" * 64}, {"name": "a", "sha256": "1" * 64}]}, "the name a twice"),
    ({"api_keys": [{"name": "a", "sha256": "0" * 64}, {"name": "b", "sha256": "0" * 64}]}, "the sha256 0+ twice"),
    ({"api_keys": [{"name": "a", "sha256": "secret"}]}, "sha256"), ({"api_keys": [{"name": "a b", "sha256": "0" * 64}]}, "name"),
    ({"api_keys": [{"name": "a", "sha256": "0" * 64, "expires": "2027-01-01T00:00:00"}]}, "expires"),
    ({"api_keys": [{"name": "a", "sha256": "0" * 64, "expire": "2027-01-01"}]}, "did you mean 'expires'")])
def test_deployments_that_would_be_open_or_unclear_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build_config(AppConfig, {"model": "tiny", **values})


def test_a_deployment_with_keys_may_listen_to_all_and_survives_json():
    config = build_config(AppConfig, {"model": "tiny", "host": "0.0.0.0", "api_keys": [key.model_dump() for key in keys()]})
    assert build_config(AppConfig, config.model_dump(mode="json")) == config


def test_every_answer_carries_the_security_headers():
    answers = [call("GET", path) for path in ("/livez", "/docs", "/nowhere")] + [call("GET", "/v1/models", config=GUARDED)]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "strict-transport-security" not in answer.headers and "access-control-allow-origin" not in answer.headers
    assert "'unsafe" not in answers[0].headers["content-security-policy"]
    tls = CONFIG.model_copy(update={"tls_certificate": "c.pem", "tls_key": "k.pem"})
    assert "max-age" in call("GET", "/livez", config=tls).headers["strict-transport-security"]


def test_the_documentations_own_script_is_the_only_inline_one_that_runs():
    page = call("GET", "/docs")
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    script_policy = re.search("script-src ([^;]*)", page.headers["content-security-policy"])[1]
    assert scripts and all(f"'sha256-{each}'" in script_policy for each in hashes) and "unsafe" not in script_policy


def test_other_sites_may_ask_only_where_they_are_named():
    preflight = {"origin": "https://photos.example.com", "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}
    config = GUARDED.model_copy(update={"cors_origins": ("https://photos.example.com",)})
    allowed = call("OPTIONS", "/v1/segment", config=config, headers=preflight)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://photos.example.com"
    for refused in (call("OPTIONS", "/v1/segment", config=config, headers=preflight | {"origin": "https://evil.example"}),
                    call("OPTIONS", "/v1/segment", config=GUARDED, headers=preflight)):
        assert refused.status_code in (400, 401) and "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("path", sorted(OPEN_PATHS | {"/web/page.js"}))
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_open_paths_are_read_only_and_take_no_place(path, method):
    """A slow body to a health check held a place of the admission: 64 of them denied everybody, without a key."""
    async def never():
        raise AssertionError("the body was read")
        yield b""

    response = session(lambda http: http.request(method, path, content=never(), headers={"idempotency-key": "k"}), RuleModel(), GUARDED)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("localhost:8000", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("127.9.9.9", 200), ("a.localhost", 200),
    ("proxy.lan", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil.example:8000", 403), ("10.0.0.5", 403),
    ("", 403), ("[::1", 403), ("evil.example@localhost:1", 403)])
def test_without_keys_the_host_is_a_name_of_this_machine(host, status):
    config = CONFIG.model_copy(update={"allowed_hosts": ("proxy.lan",)})
    response = session(lambda http: http.get("/v1/models", headers={"host": host}), RuleModel(), config)
    assert response.status_code == status
    assert session(lambda http: http.get("/v1/models", headers={"host": host, **bearer("alice")}), RuleModel(), GUARDED).status_code == 200


@pytest.mark.parametrize("origin, status", [
    ("http://localhost", 200), ("https://photos.example.com", 200), ("http://evil.example", 403), ("null", 403),
    ("http://localhost:81", 403), ("http://[", 403), ("http://[::1", 403), ("", 403)])
def test_without_keys_a_page_of_elsewhere_may_not_ask(origin, status):
    config = CONFIG.model_copy(update={"cors_origins": ("https://photos.example.com",)})
    response = session(lambda http: http.post("/v1/segment", headers={"origin": origin}, **as_form(photo_bytes())), RuleModel(), config)
    assert response.status_code == status


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "x-request-id", "idempotency-key", "x-answer-timeout-s", "content-type",
                                  "origin", "host", "accept", "content-length"])
def test_headers_that_are_not_utf8_are_the_clients_mistake(name):
    for config in (CONFIG, GUARDED):
        headers = [(name.encode(), b"\xff\xfe\x80")]
        response = session(lambda http: http.post("/v1/segment", headers=headers, content=b"x"), RuleModel(), config)  # noqa: B023
        assert 400 <= response.status_code < 500
