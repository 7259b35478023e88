"""`lb group cert`: a small authority of the group's own, and a certificate for each member.

Members believe no other authority, so there is nothing to buy and nobody to ask. Everything
is made here, by the cryptography library, and no key leaves the folder. No other command loads
this module: that library takes 40 ms.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lb.cli.output import output_option, print_json, say
from lb.cli.saving import OWNER_ONLY, ExistsError, save
from lb.errors import OperatorError, UsageError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}")  # As the config takes a member's name.
AUTHORITY = "group-ca"
CA_DAYS = 3650
MEMBER_DAYS = 825
CLOCKS_DIFFER = timedelta(hours=1)  # A member whose clock is behind must believe it too.
READABLE = 0o644
PRIVATE_FOLDER = 0o700


@click.command()
@output_option
@click.option("--ca-dir", required=True, metavar="DIR", help="Where the authority is, or will be.")
@click.option(
    "--days",
    type=click.IntRange(1, CA_DAYS),
    default=MEMBER_DAYS,
    show_default=True,
    help="How long the member's certificate holds.",
)
@click.option("--renew", is_flag=True, help="Replace the member's certificate and key.")
@click.argument("name")
def cert(name: str, ca_dir: str, days: int, renew: bool, output: str) -> None:
    """Make NAME's certificate in DIR, and the group's authority if there is none yet.

    Keep group-ca.key away from the instances: whoever has it can make a member.

    \b
    lb group cert a --ca-dir group-ca
    lb group cert a --ca-dir group-ca --renew
    """
    if NAME.fullmatch(name) is None or name == AUTHORITY:
        raise UsageError(f'"{name}" is no name of a member', "letters, digits, and _ - .")
    folder = Path(ca_dir)
    made = _make_authority(folder)
    expires = _make_member(folder, name, days, renew)
    files = {word: str(folder / f"{name}.{end}") for word, end in (("cert", "pem"), ("key", "key"))}
    files["ca"] = str(folder / "group-ca.pem")
    if output == "json":
        print_json({"name": name, **files, "expires": expires.isoformat(), "new_ca": made})
        return
    if made:
        say(f"made the group's authority: {folder}/group-ca.pem and group-ca.key (keep that one)")
    say(f"made {files['cert']} and {files['key']}, good until {expires:%Y-%m-%d}")
    say(f"copy {name}.pem, {name}.key and group-ca.pem to {name}, and put into its config file:")
    tls = ", ".join(
        f"{word} = {json.dumps(os.path.basename(path))}" for word, path in files.items()
    )
    click.echo(f"[group]\ntls = {{ {tls} }}")


def _make_authority(folder: Path) -> bool:
    """Make the authority; False if it is there."""
    pem, key = folder / "group-ca.pem", folder / "group-ca.key"
    if pem.exists() and key.exists():
        return False
    if pem.exists() or key.exists():
        missing = key if pem.exists() else pem
        raise OperatorError(
            f"{missing} is missing, and its counterpart is there",
            "bring it back, or take another folder for a new authority",
        )
    try:
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{folder} cannot be made: {error.strerror}") from None
    own = _new_key()
    certificate = _authority(own)
    save(key, _key_pem(own), OWNER_ONLY)
    save(pem, _pem(certificate), READABLE)
    return True


def _make_member(folder: Path, name: str, days: int, renew: bool) -> datetime:
    own = _new_key()
    ca_pem, ca_key = _load_authority(folder)
    if ca_pem.not_valid_after_utc < datetime.now(UTC):
        raise OperatorError(
            f"the authority in {folder} ended on {ca_pem.not_valid_after_utc:%Y-%m-%d}",
            "take another folder for a new one, and put both into each member's ca file first",
        )
    certificate = _member(name, own, ca_pem, ca_key, days)
    contents = {
        folder / f"{name}.key": (_key_pem(own), OWNER_ONLY),
        folder / f"{name}.pem": (_pem(certificate), READABLE),
    }
    for path in contents:
        if path.exists() and not renew:
            raise ExistsError(f"{path} is there already", "lb group cert --renew replaces it")
    for path, (content, mode) in contents.items():
        save(path, content, mode)
    return certificate.not_valid_after_utc


def _load_authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "group-ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "group-ca.key").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise OperatorError(f"the authority in {folder} cannot be read: {error}") from None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise OperatorError(f"{folder}/group-ca.key is of another kind", "lb group cert made none")
    if certificate.public_key() != key.public_key():
        raise OperatorError(f"group-ca.pem and group-ca.key in {folder} do not belong together")
    return certificate, key


def _authority(own: EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Accord group")])
    builder = (
        _dated(CA_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(own.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
    )
    return builder.sign(own, hashes.SHA256())


def _member(
    name: str,
    own: EllipticCurvePrivateKey,
    ca_pem: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = (
        _dated(days, ca_pem.not_valid_after_utc)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(ca_pem.subject)
        .public_key(own.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(authority, critical=False)
    )
    return builder.sign(ca_key, hashes.SHA256())


def _dated(days: int, last: datetime | None = None) -> x509.CertificateBuilder:
    """Begin a certificate that holds so long, and not longer than its authority."""
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(end if last is None else min(end, last))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
