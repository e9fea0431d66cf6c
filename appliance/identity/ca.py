"""The appliance's certificate authority: made at first start or by `verbatim ca init`, signs what agents are shown.

Files in `DATA/keys/`, mode 0600: `ca.key` (or a link to the operator's own file) and `ca.crt` (ECDSA, RFC 5280, ten
years), `api.key` and `api.crt`. A leaf is made anew when its names change, when another CA signed it, when its key is
another one, or 30 days before it ends.

A rotation makes a new key and certificate of the same name. The former certificate stays in `ca-former.crt` (all that
were, newest first), and its key, before it is dropped, signs the new key in `ca-cross.crt`, valid for the overlap: sent
behind a leaf, it leads who trusts only the former CA to the new key. While it is valid, both are handed out (`bundle`).
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.identity.certificate import CLIENT, MAX_COMMON_NAME, Issuer, cross, ends, leaf, root
from appliance.identity.constraints import Constraints, Subject, subject
from appliance.identity.signer import KeySigner, Signer, read_signer, stored_signer
from appliance.identity.staged import locked, replace_together

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
OVERLAP = timedelta(days=30)
MAX_FORMER = 16  # certificates of former CAs that are kept

KEY, CERTIFICATE, CROSS, FORMER = "ca.key", "ca.crt", "ca-cross.crt", "ca-former.crt"


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA: what signs, its certificate, and what is left of those before it, newest first."""

    signer: Signer
    certificate: x509.Certificate
    cross: x509.Certificate | None = None
    formers: tuple[x509.Certificate, ...] = ()

    @property
    def issuer(self) -> Issuer:
        return Issuer(self.certificate, self.signer)

    @property
    def pem(self) -> bytes:
        return pem(self.certificate)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, as `openssl x509 -fingerprint -sha256` prints it."""
        return fingerprint(self.certificate)

    def overlap(self, now: datetime) -> x509.Certificate | None:
        """What leads from the former CA to this one, while it is valid."""
        return self.cross if self.cross is not None and now < ends(self.cross) else None

    def bundle(self, now: datetime) -> bytes:
        """PEM for who verifies: this certificate, and during an overlap the former one behind it."""
        former = self.formers[:1] if self.overlap(now) else ()
        return b"".join(pem(each) for each in (self.certificate, *former))


class Current:
    """The CA of a data folder as it is now, whatever was rotated since; made if there is none."""

    def __init__(self, data: Path, node: str) -> None:
        self._data, self._node = data, node
        self._authority = load_or_create(data, node)
        self._read = self._files()

    def __call__(self) -> Authority:
        """Raises `DamagedEvidence` when its files don't fit together any more, `Unavailable` when they are gone."""
        if (files := self._files()) != self._read:
            self._authority = load(self._data)
            self._read = files
        return self._authority

    def _files(self) -> tuple[tuple[int, int], ...]:
        found = []
        for name in (CERTIFICATE, CROSS):
            try:
                seen = (self._data / "keys" / name).stat()
            except FileNotFoundError:
                found.append((0, 0))
            else:
                found.append((seen.st_ino, seen.st_mtime_ns))
        return tuple(found)


def load_or_create(data: Path, node: str, now: datetime | None = None) -> Authority:
    """The CA in `data`/keys, made if there is none. Raises `DamagedEvidence` when its files don't fit together."""
    with locked(data / "keys") as folder:
        return _load(folder) or _create(folder, f"Verbatim CA {node}", now or datetime.now(UTC), CA_LIFETIME)


def load(data: Path) -> Authority:
    """The CA in `data`/keys. Raises `DamagedEvidence` as `load_or_create`, `Unavailable` when there is none."""
    if not (data / "keys").exists():
        raise _missing(data)
    with locked(data / "keys") as folder:
        found = _load(folder)
    if found is None:
        raise _missing(data)
    return found


def create(
    data: Path,
    name: str,
    *,
    now: datetime,
    lifetime: timedelta = CA_LIFETIME,
    constraints: Constraints | None = None,
    key: Path | None = None,
) -> Authority:
    """Make the CA; `key`: a file that stays where it is, else a new key. Raises `Refused` when there is one."""
    with locked(data / "keys") as folder:
        if (found := _load(folder)) is not None:
            raise Refused(f"{folder}: there is a CA already ({found.fingerprint}); rotate it to have another one")
        return _create(folder, name, now, lifetime, constraints, key)


def rotate(
    data: Path,
    *,
    now: datetime,
    overlap: timedelta = OVERLAP,
    lifetime: timedelta = CA_LIFETIME,
    constraints: Constraints | None = None,
    key: Path | None = None,
) -> Authority:
    """Put a new key and certificate in the place of the CA's; the former key is dropped.

    `constraints`: None keeps those that it has. `overlap`: how long who trusts only the former CA can verify; zero: not
    at all, also where an overlap was running. Raises `Refused` when another one has not ended, `Unavailable` when there
    is no CA.
    """
    with locked(data / "keys") as folder:
        former = _load(folder)
        if former is None:
            raise _missing(data)
        if overlap and (running := former.overlap(now)):
            raise Refused(
                f"CA: the overlap with the one before lasts until {ends(running):%Y-%m-%d %H:%M}; rotate then, or with "
                "--overlap 0, after which those that trust an older one no longer verify"
            )
        signer, content = _signer(key)
        kept = Constraints.of(former.certificate) if constraints is None else constraints
        name = str(former.certificate.subject.rdns[0].get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        certificate = root(signer, name, now, lifetime, kept)
        bridge = cross(certificate, former.issuer, now, now + overlap) if overlap else None
        formers = (former.certificate, *former.formers)[:MAX_FORMER]
        replace_together(
            folder,
            {
                KEY: content,
                CERTIFICATE: pem(certificate),
                CROSS: None if bridge is None else pem(bridge),
                FORMER: b"".join(map(pem, formers)),
            },
        )
        return Authority(signer, certificate, bridge, formers)


def issue(
    authority: Authority,
    names: Iterable[str],
    now: datetime,
    lifetime: timedelta = LEAF_LIFETIME,
    *,
    client: bool = False,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A new key with a certificate for DNS names and IP addresses, of a server or of a client.

    A client's names may also be none of these; the first is its common name. Raises `MalformedInput` when there is no
    name or one is none, `Refused` when the CA's constraints forbid one.
    """
    given = list(dict.fromkeys(names))
    if not given:
        raise MalformedInput("certificate: no name or address to issue it for")
    key = ec.generate_private_key(ec.SECP256R1())
    if not client:
        return key, leaf(authority.issuer, key.public_key(), [subject(name) for name in given], now, lifetime)
    common = given[0]
    if not 0 < len(common) <= MAX_COMMON_NAME or not common.isprintable():
        raise MalformedInput(f"certificate: a client's name has 1 to {MAX_COMMON_NAME} printable characters")
    subjects = []
    for name in given:
        with suppress(MalformedInput):
            subjects.append(subject(name))
    return key, leaf(authority.issuer, key.public_key(), subjects, now, lifetime, common=common, usage=CLIENT)


def api_certificate(
    authority: Authority, data: Path, names: Iterable[str], now: datetime | None = None
) -> tuple[Path, Path]:
    """Paths of the API's certificate chain and key, valid for all `names`; made anew when the present one is not.

    Names that the CA's constraints forbid are left out. Raises `Refused` when none is left.
    """
    now = now or datetime.now(UTC)
    wanted, left_out = certifiable(authority.certificate, names)
    if not wanted:
        first, reason = next(iter(left_out.items()), ("it", "without a name"))
        raise Refused(f"API certificate: {first} is {reason}; rotate the CA, and permit an address of api.listen")
    bridge = authority.overlap(now)
    chain = (*((bridge,) if bridge else ()), authority.certificate)
    certificate_path, key_path = data / "keys" / "api.crt", data / "keys" / "api.key"
    with locked(data / "keys") as folder:
        if not _fits(certificate_path, key_path, chain, wanted, now):
            key, certificate = issue(authority, map(str, wanted), now)
            made = b"".join(map(pem, (certificate, *chain)))
            replace_together(folder, {key_path.name: private_pem(key), certificate_path.name: made})
    return certificate_path, key_path


def certifiable(certificate: x509.Certificate, names: Iterable[str]) -> tuple[list[Subject], dict[Subject, str]]:
    """Which of `names` this CA may certify, and why not the others."""
    allowed = Constraints.of(certificate)
    judged = {each: allowed.forbids(each) for each in map(subject, names)}
    return [each for each, reason in judged.items() if not reason], {each: why for each, why in judged.items() if why}


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _missing(data: Path) -> Unavailable:
    return Unavailable(f"{data / 'keys'}: there is no CA; make one with 'verbatim ca init'")


def _load(folder: Path) -> Authority | None:
    """Needs the lock. Raises `DamagedEvidence`."""
    key_path, certificate_path = folder / KEY, folder / CERTIFICATE
    if key_path.is_symlink() and not key_path.exists():
        raise DamagedEvidence(f"{key_path}: the key that it links to, {key_path.readlink()}, is gone; bring it back")
    if key_path.exists() != certificate_path.exists():
        raise DamagedEvidence(f"{folder}: only one of ca.key and ca.crt is there; restore the other from a backup")
    if not key_path.exists():
        return None
    signer = stored_signer(key_path)
    (certificate,), bridges, formers = (_read(folder / name) for name in (CERTIFICATE, CROSS, FORMER))
    if signer.public_key() != certificate.public_key():
        raise DamagedEvidence(f"{folder}: ca.key does not belong to ca.crt; restore both from a backup")
    bridge = next((each for each in bridges if each.public_key() == certificate.public_key()), None)
    return Authority(signer, certificate, bridge, tuple(formers))


def _read(path: Path) -> Sequence[x509.Certificate]:
    """Certificates of a PEM file; none where there is no file, but for the CA's own, of which there is one."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        return ()
    except ValueError as error:
        raise DamagedEvidence(f"{path}: not readable PEM; restore it from a backup") from error
    return found[:1] if path.name == CERTIFICATE else found


def _create(
    folder: Path,
    name: str,
    now: datetime,
    lifetime: timedelta,
    constraints: Constraints | None = None,
    key: Path | None = None,
) -> Authority:
    signer, content = _signer(key)
    certificate = root(signer, name[:MAX_COMMON_NAME], now, lifetime, constraints or Constraints())
    replace_together(folder, {KEY: content, CERTIFICATE: pem(certificate)})
    return Authority(signer, certificate)


def _signer(key: Path | None) -> tuple[KeySigner, bytes | Path]:
    """And what stands in `ca.key` for it: its PEM, or the file that it stays in."""
    if key is not None:
        return read_signer(key), key.resolve()
    made = ec.generate_private_key(ec.SECP256R1())
    return KeySigner(made), private_pem(made)


def _fits(
    path: Path, key_path: Path, chain: Sequence[x509.Certificate], wanted: Sequence[Subject], now: datetime
) -> bool:
    try:
        certificate, *others = x509.load_pem_x509_certificates(path.read_bytes())
        if serialization.load_pem_private_key(key_path.read_bytes(), None).public_key() != certificate.public_key():
            return False
        certificate.verify_directly_issued_by(chain[-1])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    present = {subject(str(name.value)) for name in names}
    return others == list(chain) and set(wanted) <= present and ends(certificate) - now > RENEW_BEFORE
