"""TLS from files that change under a running server."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from trunkline_server.tls import CertificateInvalid, Certificates

Context = grpc.aio.ServicerContext[bytes, bytes]


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def serial(self) -> int:
        return self.certificate.serial_number


def issue(name: str, by: Issued | None = None, days: int = 1) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key)


@pytest.fixture(scope="module")
def authority() -> Issued:
    return issue("authority")


@dataclass
class Files:
    folder: Path
    certificate: Path
    key: Path
    clients: Path

    def write(self, issued: Issued) -> None:
        self.certificate.write_bytes(issued.pem)
        self.key.write_bytes(issued.key_pem)


@pytest.fixture
def files(tmp_path: Path, authority: Issued) -> Files:
    files = Files(tmp_path, tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "clients.pem")
    files.write(issue("server", authority))
    files.clients.write_bytes(authority.pem)
    return files


async def echo(request: bytes, _: Context) -> bytes:
    return request


class Serving:
    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.server = grpc.aio.server()
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "E": grpc.unary_unary_rpc_method_handler(echo)
        }
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
        self.port = self.server.add_secure_port("127.0.0.1:0", certificates.credentials())

    async def call(self, roots: bytes, client: Issued | None = None) -> bytes:
        credentials = grpc.ssl_channel_credentials(
            roots, client.key_pem if client else None, client.pem if client else None
        )
        # A pool of its own: a channel to the same place would reuse the connection.
        options = (("grpc.use_local_subchannel_pool", 1),)
        target = f"127.0.0.1:{self.port}"
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/t/E")
            return await call(b"hello", timeout=5)

    async def serial(self) -> int:
        """The certificate that a fresh handshake gets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(der).serial_number


async def serve(certificates: Certificates) -> AsyncIterator[Serving]:
    serving = Serving(certificates)
    await serving.server.start()
    yield serving
    await serving.server.stop(0)


@pytest.fixture
async def tls(files: Files) -> AsyncIterator[Serving]:
    async for serving in serve(Certificates(files.certificate, files.key)):
        yield serving


@pytest.fixture
async def mtls(files: Files) -> AsyncIterator[Serving]:
    async for serving in serve(Certificates(files.certificate, files.key, files.clients)):
        yield serving


async def test_a_new_certificate_is_served_without_a_restart(
    tls: Serving, files: Files, authority: Issued
) -> None:
    before = await tls.serial()
    fresh = issue("server", authority, days=3)
    files.write(fresh)
    assert await tls.serial() == fresh.serial != before
    assert tls.certificates.expires_in_s > timedelta(days=2).total_seconds()
    assert await tls.call(authority.pem) == b"hello"


@pytest.mark.parametrize("broken", ["garbage", "empty", "foreign key", "expired", "gone"])
async def test_a_broken_file_keeps_the_last_good_certificate(
    tls: Serving, files: Files, authority: Issued, broken: str
) -> None:
    before = await tls.serial()
    match broken:
        case "garbage":
            files.certificate.write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing")
        case "empty":
            files.certificate.write_bytes(b"")
        case "foreign key":
            files.key.write_bytes(issue("other").key_pem)
        case "expired":
            files.write(issue("server", authority, days=-1))
        case "gone":
            files.key.unlink()
    assert await tls.serial() == before
    assert await tls.call(authority.pem) == b"hello"
    assert tls.certificates.refused >= 1
    healed = issue("server", authority)
    files.write(healed)
    assert await tls.serial() == healed.serial


async def test_mutual_tls_wants_a_certificate_of_its_authority(
    mtls: Serving, authority: Issued
) -> None:
    assert await mtls.call(authority.pem, issue("client", authority)) == b"hello"
    for wrong in (None, issue("client", issue("stranger"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await mtls.call(authority.pem, wrong)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_clients_authority_is_read_again(
    mtls: Serving, files: Files, authority: Issued
) -> None:
    successor = issue("successor")
    files.clients.write_bytes(successor.pem)
    assert await mtls.call(authority.pem, issue("client", successor)) == b"hello"
    with pytest.raises(grpc.aio.AioRpcError):
        await mtls.call(authority.pem, issue("client", authority))


@pytest.mark.parametrize("minor", [1, 2], ids=["TLS 1.0", "TLS 1.1"])
async def test_old_tls_is_refused_by_the_server(tls: Serving, minor: int) -> None:
    # A hand-made ClientHello: OpenSSL here may refuse to speak it before the server can. grpc
    # closes without an alert; the same hello with 1.2 gets an answer (below).
    assert await asyncio.to_thread(answer_to_hello, tls.port, minor) == b""


async def test_tls_1_2_is_served(tls: Serving) -> None:
    answer = await asyncio.to_thread(answer_to_hello, tls.port, 3)
    assert answer[0] == 22  # a handshake record: ServerHello


def answer_to_hello(port: int, minor: int) -> bytes:
    ciphers = bytes.fromhex("c02bc02fc009c00ac013c014002f0035")
    groups = bytes.fromhex("000a000400020017") + bytes.fromhex("000b00020100")
    signatures = bytes.fromhex("000d00080006040308040401")
    protocols = bytes.fromhex("00100005000302") + b"h2"
    extensions = groups + signatures + protocols
    body = (
        bytes((3, minor)) + bytes(32) + b"\0"
        + len(ciphers).to_bytes(2) + ciphers + b"\1\0"
        + len(extensions).to_bytes(2) + extensions
    )  # fmt: skip
    hello = b"\1" + len(body).to_bytes(3) + body
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(bytes((22, 3, 1)) + len(hello).to_bytes(2) + hello)
        return connection.recv(64)


def test_a_server_does_not_start_with_broken_files(files: Files) -> None:
    files.key.write_bytes(issue("other").key_pem)
    with pytest.raises(CertificateInvalid, match="not the key of"):
        Certificates(files.certificate, files.key)
