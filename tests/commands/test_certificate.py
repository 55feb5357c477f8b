"""The certificate of one's own: who it is for, and that clients which are told to trust it do."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from server.commands import serve
from server.commands.certificate import write_certificate
from server.config import Config
from server.errors import ConfigurationError


def test_it_is_for_the_names_and_addresses_given(tmp_path: Path) -> None:
    path, key = write_certificate(tmp_path / "new" / "folder", ["localhost", "127.0.0.1", "::1"])
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 90
    assert key.stat().st_mode & 0o777 == 0o600


def test_writing_it_again_replaces_both_files(tmp_path: Path) -> None:
    path, key = write_certificate(tmp_path, ["localhost"])
    before = (path.read_bytes(), key.read_bytes())
    key.chmod(0o644)
    assert write_certificate(tmp_path, ["localhost"]) == (path, key)
    assert path.read_bytes() != before[0]
    assert key.read_bytes() != before[1]
    assert key.stat().st_mode & 0o777 == 0o600


def settings(certificate: Path | str, key: Path | str) -> Config:
    return Config().replace(server={"tls_certificate": str(certificate), "tls_key": str(key)})


async def test_a_strict_client_that_trusts_it_accepts_it_for_its_names_only(tmp_path: Path) -> None:
    """Strict as Python is by default from 3.13 on."""
    certificate, key = write_certificate(tmp_path, ["localhost", "127.0.0.1"])

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=serve.tls_context(settings(certificate, key)))
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=certificate)
    trust.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    async with server:
        for name in ("localhost", "127.0.0.1"):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=name)
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="example.org")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path, ["localhost"])
    (tmp_path / "nonsense.pem").write_text("nonsense")
    _, other_key = write_certificate(tmp_path / "other", ["localhost"])
    for pair in ((tmp_path / "missing.pem", key), (certificate, tmp_path / "nonsense.pem"), (certificate, other_key)):
        with pytest.raises(ConfigurationError, match="can't be used"):
            serve.tls_context(settings(*pair))
    assert serve.tls_context(Config()) is None
    context = serve.tls_context(settings(certificate, key))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
