"""An authority of the lab's own and a certificate for each sidecar, with its SPIFFE id, as a mesh issues them."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFETIME: Final = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Identity:
    """Where a sidecar's certificate, its key and the authority's certificate are."""

    certificate: Path
    key: Path
    authority: Path


class Authority:
    """Signs workload certificates; lives as long as the lab, in memory."""

    def __init__(self, directory: Path, now: datetime | None = None) -> None:
        self._directory = directory
        self._now = now or datetime.now(UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "provenance lab")])
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._file = directory / "ca.pem"
        self._file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, principal: str, owner: int) -> Identity:
        """A certificate whose only name is the SPIFFE id; the key is readable by the user `owner` alone."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(principal)])
        # An empty subject makes the alternative name critical: RFC 5280, 4.2.1.6.
        certificate = (
            self._builder(x509.Name([]), key.public_key())
            .add_extension(names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        identity = Identity(self._directory / f"{name}.pem", self._directory / f"{name}.key", self._file)
        identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        os.chown(identity.key, owner, -1)
        return identity

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(minutes=5))
            .not_valid_after(self._now + _LIFETIME)
        )
