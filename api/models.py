"""JSON bodies of the API that are not rows of the store."""

from pydantic import BaseModel, ConfigDict, Field


class LeaseRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    run_id: str = Field("", max_length=128, pattern=r"^[A-Za-z0-9._:/-]*$", description="names the agent's task")
    seconds: float | None = Field(None, gt=0, description="ask for less than the maximum")


class RenewRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: float | None = Field(None, gt=0, description="ask for less than the maximum")


class LeaseIdentity(BaseModel):
    issuer: str
    subject: str
    client: str
    act: list[str]
    groups: list[str]
    run_id: str


class Lease(BaseModel):
    """Identity bound to an agent's address until `expires` (RFC 3339, UTC)."""

    lease_id: str
    address: str
    expires: str
    identity: LeaseIdentity


class Leases(BaseModel):
    leases: list[Lease]


class Certificate(BaseModel):
    fingerprint_sha256: str
    pem: str


class PartFault(BaseModel):
    """Something that is wrong now. The README's "When something is wrong" lists the names."""

    process: str
    name: str
    text: str = Field(description="what, why, and the remedy")


class Health(BaseModel):
    status: str = Field(description="ok or failing")
    parts: dict[str, str] = Field(description="part → ok, or what is wrong with it; strangers: failing")
    faults: list[PartFault] = Field([], description="empty for strangers")
