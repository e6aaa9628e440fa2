"""Ed25519 signatures of artifacts: loading an artifact is running its code, so a device may want to know whose it is.

A signature is a block behind the artifact's trailer (``edgert_signature`` in ``runtimes/c/include/edgert/model.h``).
What is signed is :data:`CONTEXT` and the SHA-256 of all bytes before the block.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.artifact import SIGNATURE, SIGNATURE_MAGIC, read_manifest, split_signature, write_atomically
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from edgec.runtimes.python.session import Session

CONTEXT = b"edgec artifact, version 1\0"


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise EdgecError("signatures need the cryptography package; run: pip install 'edgec[sign]'") from error
    return ed25519


def generate_key(path: Path) -> Path:
    """Write a new key pair: the private key (PEM, PKCS #8, readable by its owner alone) and ``<path>.pub`` beside it.

    Returns:
        The public key's file.

    Raises:
        EdgecError: there is a file already, or the package is missing.
    """
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives import serialization as form

    public = path.with_name(path.name + ".pub")
    for each in (path, public):
        if each.exists():
            raise EdgecError(f"'{each}' exists, and a key that is lost cannot be replaced; choose another -o")
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    pem = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    write_atomically({public: pem})
    return public


def sign(artifact: Path, key: Path, output: Path | None = None) -> Path:
    """Sign ``artifact``, in place or as ``output``; a signature that it has is replaced.

    Args:
        artifact: a shared object that ``edgec compile`` wrote.
        key: the private key, PEM without a password, as ``edgec keygen`` or ``openssl genpkey`` writes it.
        output: the signed file.

    Raises:
        EdgecError: no artifact, no such key, or the package is missing.
    """
    private = _private_key(key)
    if artifact.is_dir() or artifact.suffix == ".o":
        raise EdgecError(f"'{artifact}' becomes a part of something else; sign the firmware or the bit stream instead")
    read_manifest(artifact)
    content, _ = split_signature(artifact.read_bytes())
    signature = private.sign(CONTEXT + hashlib.sha256(content).digest())
    path = output or artifact
    write_atomically({path: content + SIGNATURE.pack(signature, SIGNATURE_MAGIC)})
    return path


def verify(artifact: Path, key: Path) -> None:
    """Refuse ``artifact`` unless the holder of ``key`` has signed it.

    Args:
        artifact: what :func:`sign` wrote.
        key: the public key, PEM.

    Raises:
        EdgecError: not signed, by another key, or changed since.
    """
    try:
        data = artifact.read_bytes()
    except OSError as error:
        raise EdgecError(f"cannot read the artifact {artifact}: {error.strerror}") from error
    verify_bytes(data, key, str(artifact))


def verify_bytes(data: bytes, key: Path, name: str) -> None:
    """As :func:`verify`, of a file's bytes; ``name`` is for the sentence."""
    public = _public_key(key)
    content, signature = split_signature(data)
    if signature is None:
        raise EdgecError(f"'{name}' is not signed; sign it with: edgec sign {name} --key KEY")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, CONTEXT + hashlib.sha256(content).digest())
    except InvalidSignature as error:
        raise EdgecError(
            f"'{name}' does not bear the signature of '{key}': it was changed, or signed by another key"
        ) from error


def load_signed(artifact: Path, key: Path, threads: int = 1) -> Session:
    """Open ``artifact`` if the holder of ``key`` has signed it: the bytes that are verified are those that are loaded.

    Raises:
        EdgecError: as :func:`verify`, or as :class:`edgec.runtimes.python.session.Session`.
    """
    from edgec.runtimes.python.session import Session

    try:
        data = artifact.read_bytes()
    except OSError as error:
        raise EdgecError(f"cannot read the artifact {artifact}: {error.strerror}") from error
    verify_bytes(data, key, str(artifact))
    return Session.from_bytes(data, threads)


def public_bytes(key: Path) -> bytes:
    """The 32 bytes of a public key, as ``edgert_open_signed`` takes them."""
    from cryptography.hazmat.primitives import serialization as form

    return _public_key(key).public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)


def _private_key(path: Path) -> Ed25519PrivateKey:
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _loaded(path, lambda data: load_pem_private_key(data, None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise EdgecError(f"'{path}' holds no private Ed25519 key; make one with: edgec keygen -o {path.name}.new")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    ed25519 = _ed25519()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _loaded(path, load_pem_public_key)
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise EdgecError(f"'{path}' holds no public Ed25519 key; give the .pub file of edgec keygen")
    return key


def _loaded(path: Path, load: Any) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except OSError as error:
        raise EdgecError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EdgecError(f"'{path}' holds no key of the right kind in PEM: {error}") from error
