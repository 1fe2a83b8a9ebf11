"""Content Credentials (C2PA) in an exported file: signed, who or what made it; through c2pa-python, which is optional.

A certificate of one's own comes as PEM files: the chain, the signer's first, and its key. Without one a certificate is
made for this one file and its key is forgotten: what it says cannot be changed unseen, but nobody vouches for the
signer, and programs that check it say so.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from magi_lite import __version__
from magi_lite.errors import InputError, OutputError
from magi_lite.files import output_errors, replacing

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""The IPTC's term for what a trained model made."""
NO_LIBRARY = "Content Credentials need a library that is not installed: pip install magi-lite[credentials]"
SUFFIXES = (".mp4", ".mov", ".gif", ".webp", ".png")
"""Files that can carry them."""
_DAYS = 365


def check_credentials(target: Path, certificate: Path | None, key: Path | None) -> None:
    """Refuse before any work what could not be signed.

    Raises:
        InputError: the library is missing, the file's kind carries none, or one of the two PEM files is missing.
    """
    _library()
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"A {target.suffix or 'folder'} carries no Content Credentials; choose {', '.join(SUFFIXES)}.")
    if (certificate is None) != (key is None):
        raise InputError("A certificate of your own needs two PEM files: the certificate chain and its private key.")
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise InputError(f"There is no file {path}; name a PEM file.")


def sign(path: Path, title: str, certificate: Path | None = None, key: Path | None = None) -> None:
    """Put Content Credentials into a finished file, in its place.

    Raises:
        InputError: see `check_credentials`; or the certificate cannot sign.
        OutputError: the disk refuses.
    """
    check_credentials(path, certificate, key)
    c2pa = _library()
    if certificate is None or key is None:
        chain, secret = _self_made()
    else:
        with output_errors(certificate):
            chain, secret = certificate.read_bytes(), key.read_bytes()
    manifest: dict[str, Any] = {
        "title": title,
        "claim_generator_info": [{"name": "MAGI Lite", "version": __version__}],
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            }
        ],
    }
    algorithm = _algorithm(secret)
    with replacing(path) as signed:
        try:
            info = c2pa.C2paSignerInfo(algorithm, chain, secret, None)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(manifest)) as builder:
                builder.sign_file(path, signed, signer)
        except c2pa.C2paError.Io as error:
            raise OutputError(f"{path} cannot be written ({error}); free some space, or export elsewhere.") from None
        except Exception as error:  # the library's own errors, of many kinds
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise InputError(
                f"The file could not be signed with this certificate ({error}); give the whole chain, the signer's own "
                "first, with its own key, or none for one that is made for this file."
            ) from None


def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise InputError(NO_LIBRARY) from None
    return c2pa


def _algorithm(secret: bytes) -> bytes:
    """C2PA's name of the signature that a private key makes.

    Raises:
        InputError: it is no key in PEM, or one of a kind that C2PA does not know.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        key = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError):
        raise InputError("The private key cannot be read; give an unencrypted PEM file.") from None
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return {256: b"es256", 384: b"es384", 521: b"es512"}.get(key.curve.key_size, b"es256")
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    raise InputError("This kind of key signs no Content Credentials; use an elliptic curve, RSA or Ed25519.")


def _self_made() -> tuple[bytes, bytes]:
    """A certificate chain for one signature, and its key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        parts = {NameOID.ORGANIZATION_NAME: "MAGI Lite, self-made", NameOID.COMMON_NAME: common}
        return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts.items()])

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)

    def certificate(subject: str, public: Any, authority: bool) -> x509.Certificate:
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
             "decipher_only"), False,
        )  # fmt: skip
        built = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        )
        if not authority:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return built.sign(root_key, hashes.SHA256())

    chain = [certificate("Signer", key.public_key(), False), certificate("Root", root_key.public_key(), True)]
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join(one.public_bytes(pem) for one in chain), secret
