"""Sealed secrets: what is read back, what is refused, what never shows."""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.config import Settings
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.identity import ca, secrets
from appliance.identity.credential import Kind, Secret, parse
from appliance.identity.secret_text import SecretText
from appliance.identity.secrets import Secrets
from tests.killing import Say, killed_at

SECOND = 10**9
VALUE = "correct horse battery"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def password(name: str = "orders", value: str = VALUE) -> Secret:
    return parse(name, Kind.PASSWORD, value.encode(), user="app")


def opened(data: Path, now: Callable[[], int] = lambda: 0) -> Secrets:
    return Secrets.open(Settings(data=data), now)


def test_read_back_by_another_process_sealed_on_the_disk(tmp_path: Path) -> None:
    secrets.add(tmp_path, password(), 5 * SECOND, 1000)
    found = opened(tmp_path).get("orders", Kind.PASSWORD)
    assert (found.value.reveal(), found.user, found.generation, found.set_ns, found.uid) == (
        VALUE,
        "app",
        1,
        5 * SECOND,
        1000,
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["orders.sealed", "secrets.key"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not [path for path in files if VALUE.encode() in path.read_bytes() or b"app" in path.read_bytes()]


def test_a_change_is_seen_at_the_next_use_and_the_former_value_ends(tmp_path: Path) -> None:
    now = 0
    relay = opened(tmp_path, lambda: now)
    secrets.add(tmp_path, password(), 0, 0)
    assert relay.get("orders").former is None
    secrets.renew(tmp_path, password(value="second"), 0, 0, 10 * SECOND)
    found = relay.get("orders")
    assert (found.value.reveal(), found.generation) == ("second", 2)
    assert found.former is not None
    assert found.former.value.reveal() == VALUE
    now = 10 * SECOND
    assert relay.get("orders").former is None
    before = (tmp_path / "secrets" / "orders.sealed").stat().st_size
    secrets.add(tmp_path, password("other"), now, 0)  # on this occasion it goes from the disk, too
    assert (tmp_path / "secrets" / "orders.sealed").stat().st_size < before
    assert relay.get("orders").value.reveal() == "second"
    secrets.remove(tmp_path, "orders")
    with pytest.raises(Unavailable, match="secret orders: there is none"):
        relay.get("orders")


def test_a_key_is_replaced_for_all_secrets(tmp_path: Path) -> None:
    relay = opened(tmp_path)
    for name in ("one", "two"):
        secrets.add(tmp_path, password(name, f"value of {name}"), 0, 0)
    relay.get("one")
    before = (tmp_path / "keys" / "secrets.key").read_bytes()
    former, fresh = secrets.rekey(tmp_path)
    assert (tmp_path / "keys" / "secrets.key").read_bytes() == fresh.secret != before == former.secret
    for reader in (relay, opened(tmp_path)):
        assert [reader.get(name).value.reveal() for name in ("one", "two")] == ["value of one", "value of two"]
    (tmp_path / "keys" / "secrets.key").write_bytes(before)
    with pytest.raises(
        Refused, match=r"secret one: sealed with key \w{16}, but secrets.key here is \w{16}; give the same"
    ):
        opened(tmp_path).get("one")
    with pytest.raises(Refused, match="sealed with key"):
        secrets.add(tmp_path, password("three"), 0, 0)


def test_a_new_key_is_all_or_nothing_whenever_it_is_killed(tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        secrets.add(tmp_path, password(name), 0, 0)

    def reseal(say: Say) -> None:
        secrets.rekey(tmp_path)

    number, died = 0, True
    while died:
        died, _ = killed_at(number, reseal)
        assert {opened(tmp_path).get(name).value.reveal() for name in names} == {VALUE}
        number += 2
    assert number // 2 >= 15


def test_the_key_may_come_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "credentials"
    given.mkdir()
    (given / "secrets.key").write_bytes(b"k" * 32)
    (given / "secrets.key").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    data = tmp_path / "data"
    secrets.add(data, password(), 0, 0)
    assert opened(data).get("orders").value.reveal() == VALUE
    assert not (data / "keys").exists()
    with pytest.raises(Refused, match="systemd gives this key"):
        secrets.rekey(data)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(Unavailable, match="there is no key of the secrets"):
        opened(data).get("orders")
    with pytest.raises(Unavailable, match="there is no key of the secrets"):  # another key is not made beside it
        secrets.add(data, password("other"), 0, 0)


def swapped(content: bytearray) -> None:
    content[9] = 2  # another kind


def longer(content: bytearray) -> None:
    content += b"x"


def shorter(content: bytearray) -> None:
    del content[len(content) // 2 :]


def cut(content: bytearray) -> None:
    del content[20:]


def empty(content: bytearray) -> None:
    content.clear()


def unknown_kind(content: bytearray) -> None:
    content[9] = 0


@pytest.mark.parametrize("harm", [swapped, longer, shorter, cut, empty, unknown_kind])
def test_a_torn_or_changed_file(harm: Callable[[bytearray], None], tmp_path: Path) -> None:
    secrets.add(tmp_path, password(), 0, 0)
    path = tmp_path / "secrets" / "orders.sealed"
    content = bytearray(path.read_bytes())
    harm(content)
    path.write_bytes(content)
    with pytest.raises(DamagedEvidence, match=r"secret orders: .*remove it and set it anew"):
        opened(tmp_path).get("orders")
    secrets.add(tmp_path, password("other"), 0, 0)  # the others don't suffer
    found, faults = opened(tmp_path).all()
    assert ([each.name for each in found], list(faults)) == (["other"], ["orders"])
    secrets.remove(tmp_path, "orders")
    secrets.add(tmp_path, password(), 0, 0)


def test_a_file_says_nothing_under_another_name_or_version(tmp_path: Path) -> None:
    secrets.add(tmp_path, password(), 0, 0)
    path = tmp_path / "secrets" / "orders.sealed"
    (tmp_path / "secrets" / "admin.sealed").write_bytes(path.read_bytes())
    with pytest.raises(DamagedEvidence, match="secret admin: its file was changed, or is another secret's"):
        opened(tmp_path).get("admin")
    content = bytearray(path.read_bytes())
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(Refused, match="of format 2, this release reads 1"):
        opened(tmp_path).get("orders")


@pytest.mark.parametrize("name", ["", "a/b", "../orders", "Orders", "a b", "-a", "a" * 65, "a\n", "ä"])
def test_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="a name has up to 64 of"):
        opened(tmp_path).get(name)
    with pytest.raises(MalformedInput, match="a name has up to 64 of"):
        password(name)


def test_what_a_rule_asks_for(tmp_path: Path) -> None:
    secrets.add(tmp_path, password(), 0, 0)
    with pytest.raises(Refused, match="secret orders: of kind password, needed is ssh-key or token"):
        opened(tmp_path).get("orders", Kind.SSH_KEY, Kind.TOKEN)
    with pytest.raises(Refused, match="is there already"):
        secrets.add(tmp_path, password(), 0, 0)
    with pytest.raises(Refused, match="remove it first to set one of another kind"):
        secrets.renew(tmp_path, parse("orders", Kind.TOKEN, b"t"), 0, 0, 0)
    (tmp_path / "keys" / "secrets.key").chmod(0o640)
    with pytest.raises(Refused, match="chmod 600"):
        opened(tmp_path).get("orders")


def test_two_writers_at_once(tmp_path: Path) -> None:
    """Each of eight processes sets a secret of its own, and one of the same name."""
    script = """
import sys; from pathlib import Path
from appliance.errors import Refused
from appliance.identity import secrets; from appliance.identity.credential import Kind, parse
for name in (f"own-{sys.argv[2]}", "shared"):
    try: secrets.add(Path(sys.argv[1]), parse(name, Kind.TOKEN, sys.argv[2].encode()), 0, 0); print(name)
    except Refused: pass
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)], stdout=subprocess.PIPE)
        for number in range(4)
    ]
    said = [process.communicate(timeout=60)[0].decode().split() for process in running]
    assert sum("shared" in lines for lines in said) == 1
    found, faults = opened(tmp_path).all()
    assert (len(found), faults) == (5, {})
    assert all(each.value.reveal() == each.name.removeprefix("own-") for each in found if each.name != "shared")


def test_a_value_does_not_show_itself() -> None:
    secret = password()
    for shown in (repr(secret), str(secret.value), f"{secret.value}", f"{secret.value:>20}", repr([secret.value])):
        assert VALUE not in shown
    for escape in (pickle.dumps, json.dumps, msgspec.json.encode, hash):
        with pytest.raises(TypeError):
            escape(secret.value)
    assert copy.deepcopy(secret).value is secret.value
    assert (secret.value == SecretText(VALUE), secret.value == SecretText("x"), secret.value == VALUE) == (
        True,
        False,
        False,
    )
    assert (bool(SecretText("")), secret.value.reveal()) == (False, VALUE)


def pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def test_ssh_keys_as_ssh_keygen_makes_them(tmp_path: Path) -> None:
    own, signer = tmp_path / "own", tmp_path / "signer"
    for path in (own, signer):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    subprocess.run(["ssh-keygen", "-q", "-s", signer, "-I", "x", "-n", "worker", f"{own}.pub"], check=True)
    certificate = Path(f"{own}-cert.pub").read_bytes()
    said = subprocess.run(["ssh-keygen", "-lf", own], capture_output=True, text=True, check=True).stdout
    made = parse("host", Kind.SSH_KEY, own.read_bytes(), user="worker", certificate=certificate)
    assert made.fingerprint == said.split()[1]
    with pytest.raises(MalformedInput, match="the certificate is of another key"):
        parse("host", Kind.SSH_KEY, signer.read_bytes(), certificate=certificate)
    with pytest.raises(MalformedInput, match="is not an OpenSSH certificate"):
        parse("host", Kind.SSH_KEY, own.read_bytes(), certificate=Path(f"{own}.pub").read_bytes())
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "locked", "-f", own], check=True)
    with pytest.raises(MalformedInput, match="without a passphrase; ssh-keygen -p takes that off"):
        parse("host", Kind.SSH_KEY, own.read_bytes())


def test_a_clients_certificate_and_key(tmp_path: Path) -> None:
    ours = ca.load_or_create(tmp_path, "gate")
    key, certificate = ca.issue(ours, ["a.example"], ours.certificate.not_valid_before_utc, client=True)
    private = pem(key, PrivateFormat.PKCS8)
    made = parse("client", Kind.TLS_CLIENT, private + ca.pem(certificate) + ours.pem)
    assert made == parse("client", Kind.TLS_CLIENT, private, certificate=ca.pem(certificate) + ours.pem)
    assert (made.value.reveal().encode(), made.certificate.encode()) == (private, ca.pem(certificate) + ours.pem)
    assert made.fingerprint == f"SHA256:{ca.fingerprint(certificate)}"
    for given, reason in (
        (private, "1 private keys and 0 certificates"),
        (private + private + ca.pem(certificate), "2 private keys and 1 certificates"),
        (private + ours.pem, "not that of the first certificate"),
        (private[:60] + b"!!" + private[62:] + ca.pem(certificate), "not readable PEM"),
    ):
        with pytest.raises(MalformedInput, match=reason):
            parse("client", Kind.TLS_CLIENT, given)


def test_tokens_become_headers() -> None:
    header, value = parse("llm", Kind.TOKEN, b"sk-123\n").field()
    assert (header, value.reveal()) == ("authorization", "Bearer sk-123")
    header, value = parse("llm", Kind.TOKEN, b"sk-123", header="X-Api-Key").field()
    assert (header, value.reveal()) == ("x-api-key", "sk-123")


@pytest.mark.parametrize(
    ("kind", "given", "more", "reason"),
    [
        (Kind.PASSWORD, b"", {"user": "app"}, "its value is empty"),
        (Kind.PASSWORD, b" \n", {"user": "app"}, "its value is empty"),
        (Kind.PASSWORD, b"hush\0hush", {"user": "app"}, "has a NUL byte"),
        (Kind.PASSWORD, b"hush\nhush", {"user": "app"}, "more than one line"),
        (Kind.PASSWORD, b"hush\xff", {"user": "app"}, "not UTF-8"),
        (Kind.PASSWORD, b"hush" * 20000, {"user": "app"}, "longer than 65536 bytes"),
        (Kind.PASSWORD, b"hush", {}, "needs its user; give --user"),
        (Kind.PASSWORD, b"hush", {"user": "a\nb"}, "--user is not a user's name"),
        (Kind.PASSWORD, b"hush", {"user": "app", "header": "x"}, "a password has no header"),
        (Kind.TOKEN, b"hush", {"user": "app"}, "a token has no user"),
        (Kind.TOKEN, b"hush\r\nX-Admin: 1", {}, "not what a header can hold"),
        (Kind.TOKEN, b"hush hush", {}, "a bearer token has no blanks"),
        (Kind.TOKEN, b"hush", {"header": "a: b"}, "--header is not the name of an HTTP header"),
        (Kind.SSH_KEY, b"hush", {}, "not a private key for SSH"),
        (Kind.TLS_CLIENT, b"hush", {}, "0 private keys and 0 certificates"),
    ],
)
def test_what_is_no_credential(kind: Kind, given: bytes, more: dict[str, str], reason: str) -> None:
    with pytest.raises(MalformedInput, match=reason) as error:
        parse("orders", kind, given, **more)  # type: ignore[arg-type]
    assert "secret orders: " in str(error.value)
    assert "hush" not in str(error.value)
    assert os.linesep not in str(error.value)
