"""Photos by URL: none unless the deployment says so, and then only from the public internet, whatever a name or a redirect claims."""

import asyncio
import contextlib
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serve import fetch
from serve.fetch import fetch_photo, is_public
from serve.fetch_config import FetchConfig
from serve.problems import ApiError
from tests.serve.doubles import RuleModel
from tests.serve.test_chat import user
from tests.serve.test_ingress import CONFIG, as_json, assert_problem, call, photo_bytes

FETCHING = CONFIG.model_copy(update={"fetch": FetchConfig(timeout_s=5)})
# One string, split: sixty quoted ones would not be read.
PRIVATE = """127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.2.1 198.18.0.1 224.0.0.1 240.0.0.1
255.255.255.255 ::1 :: ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1::
2002:a9fe:a9fe:: 2001:0:0:0:0:0:80ff:fffe fe80::1 fe80::1%eth0 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1 ::ffff:0:0 fec0::1
168.63.129.16 ::ffff:168.63.129.16 64:ff9b::a83f:8110 2002:a83f:8110:: 192.88.99.1 192.0.0.192 100.100.100.200 64:ff9b:1::1
64:ff9b:1::7f00:1 64:ff9b:1:ffff:ffff:ffff:a9fe:a9fe 3fff::1 3fff:fff:ffff::1 5f00::1 ::ffff:0:7f00:1 100::1 4000::1 2001:10::1""".split()  # noqa: SIM905
PUBLIC = "93.184.215.14 1.1.1.1 2606:4700:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101:: 168.63.129.17 3ffe::1".split()  # noqa: SIM905
HOSTILE = [*(f"https://{f'[{each}]' if ':' in each else each}/a.png" for each in PRIVATE), *"""http://1.1.1.1/a.png ftp://1.1.1.1/a
file:///etc/passwd gopher://127.0.0.1:70/ https://1.1.1.1:8443/a https://1.1.1.1:22/ https://user:secret@1.1.1.1/a https://1.1.1.1@127.0.0.1/
https://127.1/ https://2130706433/ https://0x7f000001/ https://0177.0.0.1/ https://localhost/ https://LOCALHOST/ https://localhost./ https:///a
https://[::1/ https:// https://1.1.1.1\\@127.0.0.1/ HTTPS://127.0.0.1/ https://127.0.0.1.:443/ https://%31%32%37.0.0.1/ https://１２７.0.0.1/
https://rebound.test/ https://mixed.test/ https://nowhere.test/ https://metadata.test/latest/meta-data https://1.1.1.1:99999/
https://a.test%00.b.test/ https://127。0。0。1/""".split()]  # noqa: SIM905
NAMES = {"rebound.test": ["127.0.0.1"], "mixed.test": ["1.1.1.1", "10.0.0.1"], "metadata.test": ["169.254.169.254"],
         "localhost": ["127.0.0.1"], "LOCALHOST": ["127.0.0.1"], "localhost.": ["127.0.0.1"]}


@pytest.fixture
def connections(monkeypatch) -> list:
    """Every address that a socket is connected to; all those outside this machine fail. Names are resolved as NAMES says."""
    seen, resolve = [], socket.getaddrinfo

    def connect(self, address):
        seen.append(address)
        raise OSError("no network in tests")

    def getaddrinfo(host, port, *args, **kwargs):
        if host in NAMES:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in NAMES[host]]
        return resolve(host, port, *args, **kwargs | {"flags": socket.AI_NUMERICHOST})

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    return seen


def test_there_are_sixty_hostile_urls():
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("url", HOSTILE)
def test_no_connection_leaves_for_a_hostile_url(url, connections):
    with pytest.raises(ApiError) as refused:
        asyncio.run(fetch_photo(url, FetchConfig(), 1000, "image"))
    assert refused.value.code == "image_url" and connections == []


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("config, code", [(CONFIG, "image_url"), (FETCHING, "image_fetch")])
def test_requests_with_a_url(config, code, connections):
    """Refused where the deployment fetches nothing; else asked for, which fails without a network."""
    url = "https://1.1.1.1/a.png"
    chat = {"model": "test", "messages": [user("Which?", {"type": "image_url", "image_url": {"url": url}})]}
    task = {"tasks": [{"data": {"image": url}}], "label_config":
            '<View><Image name="i" value="$image"/><BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels></View>'}
    for path, body in [("/v1/segment", as_json(url)), ("/v1/chat/completions", {"json": chat}), ("/adapters/label_studio/predict",
                                                                                               {"json": task})]:
        assert_problem(call("POST", path, RuleModel(), config, **body), 422, code)
    assert connections == ([] if config is CONFIG else [("1.1.1.1", 443)] * 3)


def test_only_named_hosts_are_asked_where_some_are_named(connections):
    with pytest.raises(ApiError, match="a host that this server does not ask"):
        asyncio.run(fetch_photo("https://1.1.1.1/a.png", FetchConfig(hosts=("photos.test",)), 1000, "image"))
    assert connections == []


class Photos(http.server.BaseHTTPRequestHandler):
    """A server of photos, some of them strange."""

    def do_GET(self):
        if self.path.startswith("/to"):
            self.send_response(302)
            self.send_header("Location", {"/to": "/a.png?b=1", "/to-local": "https://rebound.test/secret", "/to-http": "http://photos.test/",
                                          "/to-self": "/to-self"}[self.path])
            self.end_headers()
        elif self.path in ("/slow", "/slow-header"):
            if self.path == "/slow":
                self.send_response(200)
                self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(0.02)
        else:
            data = {"/a.png?b=1": photo_bytes(), "/large": bytes(300_000)}.get(self.path)
            self.send_response(200 if data else 404)
            self.end_headers()
            self.wfile.write(data or b"nothing")

    def log_message(self, *args):
        pass


@pytest.fixture
def photo_server(monkeypatch, tmp_path):
    """https://photos.test, with a certificate of its own that is trusted, taken for public. Yields the hosts that were resolved."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
                   .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
                   .add_extension(x509.SubjectAlternativeName([x509.DNSName("photos.test")]), False)
                   .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))
    file = tmp_path / "server.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Photos)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    resolved, trusting = [], ssl.create_default_context(cafile=str(file))

    def getaddrinfo(host, port, *args, **kwargs):
        if host in ("photos.test", "other.test", "rebound.test"):
            resolved.append(host)
            address = "10.0.0.7" if host == "rebound.test" else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        assert ipaddress.ip_address(host)  # what is left to resolve are addresses
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetch, "HTTPS_PORT", server.server_port)
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(fetch.ssl, "create_default_context", lambda: trusting)
    yield resolved
    server.shutdown()
    server.server_close()


def get(url: str, **config) -> bytes:
    return asyncio.run(fetch_photo(url, FetchConfig(**{"timeout_s": 5, **config}), 200_000, "image"))


def test_a_photo_comes_through_a_redirect_and_its_name_is_resolved_once_each_time(photo_server):
    assert get("https://photos.test/to") == photo_bytes() and photo_server == ["photos.test"] * 2
    config = CONFIG.model_copy(update={"fetch": FetchConfig(timeout_s=5)})
    model = RuleModel()
    assert call("POST", "/v1/segment", model, config, **as_json("https://photos.test/a.png?b=1")).status_code == 200
    assert model.asks[0].pixels.shape == (20, 40, 3)


@pytest.mark.parametrize("url, status, code", [
    ("https://photos.test/to-local", 422, "image_url"), ("https://photos.test/to-http", 422, "image_url"),
    ("https://photos.test/to-self", 422, "image_fetch"), ("https://photos.test/none", 422, "image_fetch"),
    ("https://photos.test/large", 413, "body_too_large"), ("https://other.test/a.png", 422, "image_fetch")])  # not other.test's certificate
def test_what_a_public_server_cannot_make_this_one_do(url, status, code, photo_server):
    with pytest.raises(ApiError) as refused:
        get(url)
    assert (refused.value.status, refused.value.code) == (status, code)
    assert "10.0.0.7" not in str(refused.value)


@pytest.mark.parametrize("path", ["slow", "slow-header"])
@pytest.mark.timeout(60)  # else it would go on for 20 minutes
def test_a_server_that_never_ends_is_left(path, photo_server):
    with pytest.raises(ApiError) as refused:
        get(f"https://photos.test/{path}", timeout_s=0.5)
    assert refused.value.code == "image_fetch"
