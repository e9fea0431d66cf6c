"""How an agent gets its tokens: curl on the agent's own host, through the gateway, from the lab's OpenID provider."""

import base64
import hashlib
import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.lab.net import Host
from tests.lab.services.idp import AUDIENCE, CALLBACK, CONSOLE, Idp

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
MAX_HOPS = 10


class TokenClient:
    """Asks `idp` for tokens from `host`. What it gets and uses is added to the lab's secrets."""

    def __init__(self, host: Host, idp: Idp, ca: Path) -> None:
        self._host = host
        self._idp = idp
        self._ca = ca

    def curl(self, *args: str, form: dict[str, str] | None = None) -> str:
        """curl's output. The form goes through standard input: a command line is visible to everyone on the host."""
        data = ["--data-binary", "@-"] if form is not None else []
        command = ["curl", "-sS", "--cacert", str(self._ca), "--max-time", "20", *data, *args]
        return self._host.run(command, input=urlencode(form) if form is not None else None).output

    def ask(self, form: dict[str, str]) -> dict[str, Any]:
        """The token endpoint's JSON answer, an error's too."""
        answer: dict[str, Any] = json.loads(self.curl(f"{self._idp.issuer}/token", form=form))
        for name in ("access_token", "id_token"):
            if name in answer:
                self._idp.site.secrets.add(answer[name])
        return answer

    def _token(self, form: dict[str, str]) -> str:
        answer = self.ask(form)
        if "access_token" not in answer:
            raise RuntimeError(f"no token: {answer.get('error')}: {answer.get('error_description')}")
        return str(answer["access_token"])

    def _credentials(self, client: str) -> dict[str, str]:
        return {"client_id": client, "client_secret": self._idp.secrets[client]}

    def client_credentials(self, client: str, lifetime: int | None = None) -> str:
        """A token for the program itself. `lifetime` (seconds) shortens it."""
        shorter = {"lifetime": str(lifetime)} if lifetime else {}
        return self._token({"grant_type": "client_credentials", **self._credentials(client), **shorter})

    def exchange(self, client: str, subject: str, actor: str | None, lifetime: int | None = None) -> str:
        """A token about `subject`'s subject, acted for by `actor`'s (RFC 8693)."""
        acting = {"actor_token": actor, "actor_token_type": ACCESS_TOKEN} if actor else {}
        shorter = {"lifetime": str(lifetime)} if lifetime else {}
        return self._token(
            {
                "grant_type": EXCHANGE,
                "audience": AUDIENCE,
                "subject_token": subject,
                "subject_token_type": ACCESS_TOKEN,
                **acting,
                **shorter,
                **self._credentials(client),
            }
        )

    def log_in(self, person: str) -> str:
        """A token for a person who logs in with name and password: authorization code flow with PKCE (RFC 7636)."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        self._idp.site.secrets.add(verifier)
        jar = self._host.home / f"cookies-{secrets.token_hex(4)}"
        query = {
            "client_id": CONSOLE,
            "response_type": "code",
            "scope": "openid record",
            "redirect_uri": CALLBACK,
            "state": secrets.token_urlsafe(8),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        url = f"{self._idp.issuer}/auth?{urlencode(query)}"
        form: dict[str, str] | None = None
        try:
            for _ in range(MAX_HOPS):
                location = self.curl(
                    *("-b", str(jar), "-c", str(jar), "-o", "/dev/null", "-w", "%{redirect_url}", url), form=form
                )
                if location.startswith(CALLBACK):
                    break
                if not location and form:
                    raise RuntimeError(f"{person} could not log in: the password was not accepted")
                # No redirect: the log-in page, which is answered at the same address.
                form = None if location else {"login": person, "password": self._idp.passwords[person]}
                url = location or url
            else:
                raise RuntimeError(f"{person} could not log in: {MAX_HOPS} redirects and no code")
        finally:
            jar.unlink(missing_ok=True)
        code = parse_qs(urlsplit(location).query)["code"][0]
        self._idp.site.secrets.add(code)
        return self._token(
            {
                "grant_type": "authorization_code",
                "client_id": CONSOLE,
                "code": code,
                "redirect_uri": CALLBACK,
                "code_verifier": verifier,
            }
        )
