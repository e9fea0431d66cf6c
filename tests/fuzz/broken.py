"""A target that fails on any start of a TLS connection: what the runner's own tests fuzz."""

from typing import Final

from appliance.dissect import Match
from appliance.dissect.tls import Tls
from tests.fuzz.targets import Target


def check(data: bytes) -> None:
    assert Tls.detect(data[:32], b"") is not Match.YES, "TLS"


def patient(data: bytes) -> None:
    Tls.detect(data[:32], b"")


TARGETS: Final = {
    "broken": Target(check, lambda: [b"plain"], size=64),
    "sound": Target(patient, lambda: [b"plain"], size=64),
}
