"""The contexts of both ends: which files they take, and what a failed handshake is called."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from tests.certificates import Authority, tls
from tests.gateway_process import SECRET

from flx_api.config import Settings, load
from flx_api.errors import StartupError
from flx_api.proto.tls import of_daemon, of_gateway, why_refused

if TYPE_CHECKING:
    from pathlib import Path


def settings(given: dict[str, str]) -> Settings:
    environ = {f"FLX_{name.upper()}": value for name, value in given.items()}
    return load({"FLX_JWT_SECRET_KEY": SECRET, **environ})


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert of_gateway(settings({})) is None
    assert of_daemon(settings({})) is None


def test_a_gateway_checks_chain_and_name_by_its_authority_alone(tmp_path: Path) -> None:
    context = of_gateway(settings(tls(Authority(tmp_path).file, None)))
    assert context is not None
    assert (True, ssl.CERT_REQUIRED) == (context.check_hostname, context.verify_mode)
    assert 1 == len(context.get_ca_certs())
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version


def test_a_daemon_asks_for_certificates_when_it_knows_who_signs_them(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("daemon")
    for file, mode in ((None, ssl.CERT_NONE), (authority.file, ssl.CERT_OPTIONAL)):
        context = of_daemon(settings(tls(file, signed)))
        assert context is not None
        assert mode == context.verify_mode


def test_files_that_cannot_be_used_name_their_setting(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("daemon")
    _, other = authority.sign("other")
    text = tmp_path / "text"
    text.write_text("secret words\n")
    locked = tmp_path / "locked"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    cases = [
        (tmp_path / "none", None, "FLX_GRPC_CA_FILE: cannot be read"),
        (text, None, "FLX_GRPC_CA_FILE: cannot be read"),
        (authority.file, (text, key), "FLX_GRPC_CERT_FILE: is no certificate"),
        (authority.file, (certificate, other), "FLX_GRPC_CERT_FILE: is no certificate"),
        (authority.file, (certificate, locked), "FLX_GRPC_CERT_FILE: is no certificate"),
        (authority.file, (certificate, tmp_path / "none"), "FLX_GRPC_CERT_FILE: is no certificate"),
    ]
    for file, signed, line in cases:
        for context in (of_gateway, of_daemon):
            with pytest.raises(StartupError) as refused:
                context(settings(tls(file, signed)))
            assert str(refused.value).startswith(line)
            assert "secret words" not in str(refused.value)


def test_a_failed_handshake_in_words() -> None:
    def verdict(code: int) -> str:
        error = ssl.SSLCertVerificationError(1, "certificate verify failed: for 'daemon.internal'")
        error.verify_code = code
        return why_refused(error)

    assert "its certificate is for another host" == verdict(62)
    assert "its certificate has expired" == verdict(10)
    assert "not trusted here" in verdict(20)
    assert "its certificate is not acceptable" == verdict(99)
    other = ssl.SSLError(1, "wrong version")
    other.reason = "WRONG_VERSION_NUMBER"
    assert "it does not speak TLS" == why_refused(other)
    other.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert "it does not accept our certificate, or wants one" == why_refused(other)
    other.reason = ""
    assert "the TLS handshake failed" == why_refused(other)
