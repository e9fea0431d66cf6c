import pytest

from appliance.errors import MalformedInput
from appliance.ingest import parse_identity
from appliance.model import Identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("subject=agent-7", Identity(subject="agent-7", method="ingest")),
        (" subject = a b , issuer = i ", Identity("i", "a b", method="ingest")),
        (
            "issuer=https://idp.example/?a=b,subject=Doe, Jane,client=c,run_id=r,groups=x,groups=y,act=bot",
            Identity("https://idp.example/?a=b", "Doe, Jane", "c", ("bot",), ("x", "y"), "r", method="ingest"),
        ),
        (
            ' {"issuer": "i", "subject": "s", "act": ["a", "b"], "groups": []}',
            Identity("i", "s", act=("a", "b"), method="ingest"),
        ),
    ],
)
def test_parsed(text: str, expected: Identity) -> None:
    assert parse_identity(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not name=value"),
        ("someone", "'someone' is not name=value"),
        ("issuer=i", "the subject is missing"),
        ("subject=", "the subject is missing"),
        ("subject=a,subject=b", "subject is given twice"),
        ("subject=a,token=x", "'token' is not one of"),
        ('{"subject": "a", "method": "lease"}', "'method' is not one of"),
        ('{"subject": "a", "lease_id": "00"}', "'lease_id' is not one of"),
        ('{"subject": "a"', "not JSON"),
        ('{"subject": 7}', "subject must be a text"),
        ('{"subject": "a", "groups": "x"}', "groups must be a list"),
        ('{"subject": "a", "act": [1]}', "act must be a text"),
        ("subject=" + "x" * 5000, "at most 4096"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedInput, match=reason) as caught:
        parse_identity(text)
    assert "write issuer=" in str(caught.value)
