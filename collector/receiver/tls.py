"""TLS for both ports, from PEM files that may be renewed while the collector runs.

gRPC asks for the current certificate at each handshake; Python's ssl has no such question, so asyncio is given a context
that hands each connection to the newest one. Each context has session tickets of its own: a client whose authority was
removed cannot resume what it negotiated before.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from collector.errors import ConfigError
from collector.receiver.watched import Watched, read_secret, warn_if_public


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are; with `client_ca`, clients must show a certificate of one of its authorities."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class _Material:
    """One generation of the files: the same bytes for gRPC and for HTTP."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


class Tls:
    """The certificate in use. `refresh` looks whether the files have changed; call it every now and then."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files; raises ConfigError that names the flag."""
        warn_if_public(files.key, "--tls-key")
        self._require_client = files.client_ca is not None
        paths = [p for p in (files.cert, files.key, files.client_ca) if p is not None]
        self.watched: Final = Watched("the TLS certificate", paths, lambda: _read(files))

    def http_context(self) -> ssl.SSLContext:
        """For uvicorn: every new connection gets the newest certificate."""
        context = _Newest(ssl.PROTOCOL_TLS_SERVER)
        context.watched = self.watched
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`: every new connection gets the newest certificate."""
        given = self.watched.value

        def fetch() -> grpc.ServerCertificateConfiguration:
            nonlocal given
            if self.watched.value is given:
                return None  # type: ignore[return-value] # gRPC's word for "unchanged", which its stubs do not know
            given = self.watched.value
            return _configuration(given)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given), fetch, require_client_authentication=self._require_client
        )


class _Newest(ssl.SSLContext):
    """A context for asyncio that leaves every handshake to the newest one."""

    watched: Watched[_Material]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001, FBT002 - the signature of ssl.SSLContext
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """A connection's TLS, by the certificate that is the newest now."""
        name = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        return self.watched.value.context.wrap_bio(incoming, outgoing, server_side, name, session)


def _read(files: TlsFiles) -> _Material:
    """The files as they are now, checked for what OpenSSL would complain about later; raises ConfigError."""
    cert = read_secret(files.cert, "--tls-cert")
    key = read_secret(files.key, "--tls-key")
    client_ca = None if files.client_ca is None else read_secret(files.client_ca, "--tls-client-ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key, password=_no_passphrase)
    except OSError as e:  # ssl.SSLError is one
        raise ConfigError(
            f"--tls-cert {files.cert} and --tls-key {files.key}: {_why(e)}; expected a PEM chain and its private key"
        ) from e
    if files.client_ca is not None:
        _load_authorities(context, files.client_ca)
    return _Material(cert, key, client_ca, context)


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(path)
    except OSError as e:
        raise ConfigError(f"--tls-client-ca {path}: {_why(e)}; expected PEM certificates of authorities") from e
    if not context.get_ca_certs():
        raise ConfigError(f"--tls-client-ca {path}: no certificate of an authority (CA:TRUE) in it")


def _configuration(material: _Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.cert)], root_certificates=material.client_ca
    )


def _no_passphrase() -> str:
    """OpenSSL would ask on the terminal, and a service that waits for an answer looks like one that hangs."""
    raise ConfigError("--tls-key: the key is encrypted; give one without a passphrase")


def _why(error: OSError) -> str:
    match error:
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
        case _:
            return error.strerror or str(error)
