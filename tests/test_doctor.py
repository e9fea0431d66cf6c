"""What `verbatim doctor` says of refusals and of an issuer that cannot be reached."""

from pathlib import Path

from appliance.config import Issuer, Settings
from appliance.doctor import Finding, Level, examine
from appliance.status import publish


def finding(settings: Settings, check: str) -> Finding:
    (found,) = (one for one in examine(settings, root=True) if one.check == check)
    return found


def test_refusals_are_told_by_reason(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    publish(tmp_path, "wire", {"refusals": {"no_lease": 3, "quic": 0, "fragment": 1}})
    said = finding(settings, "refusals")
    assert (said.level, said.found) == (Level.OK, "packets since the program was loaded: 1 fragment, 3 no lease")
    publish(tmp_path, "wire", {"refusals": {}})
    assert finding(settings, "refusals").found.endswith(": none")


def test_an_issuer_that_cannot_be_reached_is_named_once(tmp_path: Path) -> None:
    issuer = Issuer(issuer="https://127.0.0.1:1", audience=("verbatim",))
    said = finding(Settings(data=tmp_path, issuers=(issuer,)), "issuer https://127.0.0.1:1")
    assert said.level is Level.FAIL
    assert "issuer" not in said.found
