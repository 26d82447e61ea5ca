"""A deployment with a certificate of its own: over TLS it answers, without TLS it does not."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ray import serve as ray_serve

from serve.app import build_application
from serve.cluster import http_options
from serve.config import AppConfig
from tests.ray.test_serve import free_port
from tests.serve.doubles import build_rule_segmenter
from tests.serve.test_ingress import as_form, photo_bytes

pytestmark = pytest.mark.ray


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that vouches for itself, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
                   .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
                   .not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False).sign(key, hashes.SHA256()))
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return paths


def test_a_deployment_with_a_certificate_answers_over_tls_only(local_ray, tmp_path):
    certificate, key = write_certificate(tmp_path)
    config = AppConfig(model="models/test", engine={"num_slots": 4}, num_cpus=0.5, port=free_port(), tls_certificate=str(certificate),
                       tls_key=str(key))
    place = f"{config.host}:{config.port}"
    try:
        ray_serve.start(http_options=http_options(config))
        ray_serve.run(build_application(config, build_rule_segmenter), name=config.app_name)
        trusted = ssl.create_default_context(cafile=str(certificate))
        answer = httpx.post(f"https://{place}/v1/segment", verify=trusted, timeout=60, **as_form(photo_bytes()))
        assert answer.status_code == 200 and answer.json()["masks"] and "max-age" in answer.headers["strict-transport-security"]
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(f"https://{place}/livez")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{place}/livez")
    finally:
        ray_serve.shutdown()
