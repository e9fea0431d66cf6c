"""`verbatim lease`: take, list, renew and revoke leases over the gateway's API, from an agent's host."""

import os
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any

import httpx2 as httpx
import typer

from appliance.cli.output import Json, emit, facts, table
from appliance.errors import MalformedInput, Refused, Unavailable, VerbatimError

app = typer.Typer(
    name="lease", help="Bind this host to an identity, so that its traffic may pass.", no_args_is_help=True
)

Gateway = Annotated[
    str, typer.Option("--gateway", metavar="URL", envvar="VERBATIM_GATEWAY", help="For example https://10.0.0.1:8443.")
]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", envvar="VERBATIM_CA", help="The appliance's CA certificate.")
]
Token = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Access token; '-': standard input. Default: $VERBATIM_TOKEN."),
]
RunId = Annotated[str, typer.Option("--run-id", help="Names the agent's task in every record.")]
For = Annotated[float | None, typer.Option("--seconds", min=1, help="Ask for less than the gateway's maximum.")]
FAULTS: dict[int, type[VerbatimError]] = {400: MalformedInput, 413: MalformedInput, 503: Unavailable}
LeaseId = Annotated[str, typer.Argument(metavar="LEASE")]


@app.command("take")
def take(
    gateway: Gateway,
    ca: Ca = None,
    token_file: Token = None,
    run_id: RunId = "",
    seconds: For = None,
    json: Json = False,
) -> None:
    """Bind this host's address to the token's identity."""
    body = {"run_id": run_id, "seconds": seconds}
    _show(_call(gateway, ca, token_file, "POST", "/v1/leases", body), json)


@app.command("list")
def list_leases(gateway: Gateway, ca: Ca = None, token_file: Token = None, json: Json = False) -> None:
    """List the live leases of the token's identity; all of them for the role admin."""
    leases = _call(gateway, ca, token_file, "GET", "/v1/leases", None)["leases"]
    if json:
        for lease in leases:
            emit(lease)
        return
    rows = (
        (item["lease_id"], item["address"], item["identity"]["subject"], item["identity"]["run_id"], item["expires"])
        for item in leases
    )
    table(("lease", "address", "subject", "run", "expires"), rows)


@app.command("renew")
def renew(
    lease: LeaseId, gateway: Gateway, ca: Ca = None, token_file: Token = None, seconds: For = None, json: Json = False
) -> None:
    """Prolong a lease with a newer token of the same identity."""
    _show(_call(gateway, ca, token_file, "POST", f"/v1/leases/{lease}/renew", {"seconds": seconds}), json)


@app.command("revoke")
def revoke(lease: LeaseId, gateway: Gateway, ca: Ca = None, token_file: Token = None, json: Json = False) -> None:
    """End a lease now, and every flow that it carries."""
    _call(gateway, ca, token_file, "DELETE", f"/v1/leases/{lease}", None)
    if json:
        emit({"lease_id": lease, "revoked": True})


def _show(lease: dict[str, Any], json: bool) -> None:
    if json:
        emit(lease)
        return
    identity = lease["identity"]
    facts(
        (
            ("lease", lease["lease_id"]),
            ("address", lease["address"]),
            ("subject", identity["subject"]),
            ("acting", " ← ".join(identity["act"]) or "-"),
            ("run", identity["run_id"] or "-"),
            ("expires", lease["expires"]),
        )
    )


def _token(path: Path | None) -> str:
    if path is None:
        token = os.environ.get("VERBATIM_TOKEN", "")
    else:
        try:
            token = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MalformedInput(f"{path}: cannot be read as a token file: {error}") from error
    if not token.strip():
        raise MalformedInput("no access token; give --token-file FILE or set VERBATIM_TOKEN")
    return token.strip()


def _call(gateway: str, ca: Path | None, token_file: Path | None, method: str, path: str, body: Any) -> Any:
    if not gateway.startswith("https://"):
        raise MalformedInput(f"--gateway {gateway}: must begin with https://")
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except OSError as error:
        raise MalformedInput(f"--ca {ca}: {error.strerror or 'not a PEM certificate'}") from error
    headers = {"Authorization": f"Bearer {_token(token_file)}"}
    try:
        with httpx.Client(verify=context, timeout=15.0, trust_env=False) as client:
            answer = client.request(method, gateway.rstrip("/") + path, headers=headers, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(f"{gateway}: {error}; is the address right, and --ca the appliance's certificate?") from error
    if answer.is_success:
        return answer.json() if answer.content else {}
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{gateway}: HTTP status {answer.status_code}"
    raise FAULTS.get(answer.status_code, Refused)(message)
