"""Whose the requests of a connection are, and with which credential they go on: of HTTP/1.1 and HTTP/2."""

from appliance.config import RelayRule
from appliance.identity.credential import Secret
from appliance.relay.failure import Failure
from appliance.relay.http_credentials import (
    PROXY_AUTHORIZED,
    Head,
    credential_field,
    credential_note,
    token_fields,
    token_of,
)
from appliance.relay.mediator import Commands, Context, Identify

BY_PROXY, BY_REQUEST = "http-proxy", "http-authorization"


class Access:
    """Of one connection. Once a token came on it, each request needs one."""

    def __init__(self, context: Context) -> None:
        self._proxied = context.proxied
        self._method = BY_PROXY if context.proxied else BY_REQUEST
        self._known = context.identity
        self._rule: RelayRule = context.rule
        self._secret: Secret | None = context.secret
        self._names = token_fields(context.secret)
        self._named = False  # a token came
        self._told = False  # that the rule's credential is used

    def routed(self, rule: RelayRule, secret: Secret | None) -> None:
        """The rule of the server that was dialled. Only a proxy's may be another one than before."""
        self._rule, self._secret = rule, secret
        if self._proxied:
            self._names = token_fields(secret)

    @property
    def takes_tokens(self) -> bool:
        """What the agent says may hold a token for the gateway."""
        return self._proxied or self._rule.identify == "token"

    @property
    def names(self) -> tuple[bytes, ...]:
        """Of the fields that may hold one, beside a proxy's own."""
        return self._names

    def wanted(self, head: Head) -> Identify | None:
        """The token of a request, to be verified; None: it may go on without. Raises `Failure` where it may not."""
        names = (PROXY_AUTHORIZED,) if self._proxied else self._names
        token = token_of(head, names) if self.takes_tokens else None
        if token:
            return Identify(token, self._method)
        if token is not None:
            raise Failure("token", "the access token must come once, as Bearer or as the password of Basic")
        if self._needs_token:
            how = (
                ("the proxy's password",) if self._proxied else ("Authorization: Bearer", *map(bytes.decode, names[1:]))
            )
            raise Failure("token", f"an access token is needed as {' or '.join(how)}")
        return None

    @property
    def _needs_token(self) -> bool:
        known = self._known
        if self._proxied:
            return known is None or self._named
        return self._rule.identify == "token" and (known is None or known.method == "lease" or self._named)

    def identified(self) -> None:
        """A token was accepted."""
        self._named = True

    def ours(self, head: Head, token: str = "") -> list[bytes]:
        """Fields that hold a token for the gateway, so that the server must not see them. `token`: the request's."""
        if self._rule.identify == "token":
            return [*self._names]
        return [name for name in self._names if token and token_of(head, (name,)) == token]

    def credential(self, out: Commands) -> tuple[bytes, bytes] | None:
        """The field with the rule's credential, if that has one; the first time it is noted. Raises `Failure`."""
        if self._secret is None:
            return None
        field = credential_field(self._secret)
        if not self._told:
            self._told = True
            out.append(credential_note(self._secret, field[0]))
        return field
