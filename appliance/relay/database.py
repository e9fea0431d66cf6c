"""What the mediators of databases share: an agent's token in the place of a password, a log-in with the rule's
credential, and an end in the protocol's own words.

What a mediator is asked is a step each. A step says its commands by `_do`; where it raises a `Refusal`, the agent is
told, and the flow ends.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol

from appliance.identity.credential import Kind, Secret
from appliance.model import Direction, Identity
from appliance.relay.failure import Code, Refusal
from appliance.relay.inbox import Inbox
from appliance.relay.mediator import Command, Commands, Context, HangUp, Mediator, Note

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
MAX_WORDS: Final = 1000  # characters of an error message
TOKEN: Final = "token"  # noqa: S105


class _Fed(Protocol):
    """What takes an agent's bytes apart."""

    def feed(self, data: bytes) -> None: ...


class DatabaseMediator(Mediator, Generic[Code]):
    """One connection of an agent."""

    _agent: _Fed
    _server: Inbox

    def __init__(self, context: Context) -> None:
        self.ready = False
        self._context = context
        self._secret: Secret | None = context.secret
        self._token = context.rule.identify == TOKEN
        self._out: Commands = []

    # -- what a mediator is asked ----------------------------------------------------------------------------------

    def receive(self, direction: Direction, data: bytes) -> Commands:
        if direction is CLIENT:
            self._agent.feed(data)
            return self._run(self._hear_agent)
        self._server.feed(data)
        return self._run(self._hear_server)

    def ended(self, direction: Direction) -> Commands:
        return self._run(self._agent_ended if direction is CLIENT else self._server_ended)

    def dialled(self) -> Commands:
        return self._run(self._connected)

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._end(reason, f"the gateway did not reach the server: {text}")

    def identified(self, identity: Identity) -> Commands:
        return self._run(self._identified)

    def unidentified(self, text: str) -> Commands:
        told = f"the gateway does not accept the access token that was given as password: {text}"
        return self._run(lambda: self._decline(told))

    def stop(self, reason: str, text: str) -> Commands:
        return self._end(reason, text)

    def _end(self, reason: str, text: str) -> Commands:
        return self._run(lambda: self._refuse(self._refusal(reason, text)))

    def _run(self, step: Callable[[], None]) -> Commands:
        """The commands of one step."""
        if self._over:
            return []
        self._out = []
        try:
            step()
        except Refusal as refusal:
            self._refuse(refusal)
        return self._out

    # -- the protocol's steps --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _over(self) -> bool:
        """There is nothing more to be said."""

    @abstractmethod
    def _hear_agent(self) -> None:
        """It said something."""

    @abstractmethod
    def _hear_server(self) -> None:
        """It said something."""

    @abstractmethod
    def _agent_ended(self) -> None:
        """It sends no more."""

    @abstractmethod
    def _server_ended(self) -> None:
        """It sends no more."""

    @abstractmethod
    def _connected(self) -> None:
        """With the server."""

    @abstractmethod
    def _identified(self) -> None:
        """The agent's token is accepted."""

    @abstractmethod
    def _dial(self) -> None:
        """Connect to the server, and log in there anew."""

    @abstractmethod
    def _code(self, reason: str) -> Code:
        """Which of the protocol's errors this is."""

    @abstractmethod
    def _refuse(self, refusal: Refusal[Code]) -> None:
        """Put on record what was said and not dealt with, tell the agent if it can hear that, and end."""

    # -- what they share -------------------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        self._out.append(command)

    def _refusal(self, reason: str, text: str, hint: str = "") -> Refusal[Code]:
        return Refusal(reason, self._code(reason), text, hint)

    def _token_in(self, password: bytes) -> str:
        """An access token in the place of a password; "": it is none, and the agent was told so."""
        if not password or not password.isascii() or b"\0" in password:
            self._decline("the password is not an access token", "Give an access token as the password")
            return ""
        return password.decode("ascii")

    def _decline(self, told: str, hint: str = "") -> None:
        """Not this token."""
        raise self._refusal("token-refused", told, hint)

    def _check_secret(self) -> None:
        """Raises `Refusal` where the rule's credential is not one to log in with."""
        secret = self._secret
        if secret is not None and secret.kind is not Kind.PASSWORD:
            text = f"the rule's secret {secret.name} is a {secret.kind}, not a password"
            raise self._refusal("secret", text, "The administrator can name one of kind password")

    def _note_login(self, user: str, method: str) -> None:
        """`user`: who logs in where the gateway has no credential."""
        said = {"user": user if self._secret is None else self._secret.user, "method": method}
        if self._secret is not None:
            said["secret"] = self._secret.name
        self._do(Note("upstream", f"logged in as {said['user']}", {"login": said}))

    def _login_refused(
        self, secret: Secret, error: dict[str, Any], named: str, message: str, *, again: bool
    ) -> Refusal[Code] | None:
        """The server's error about the gateway's credential, which is not the agent's to know. `again`: it may be that
        this was rotated here and not there yet; None: its former value is tried."""
        attrs = error | {"secret": secret.name, "generation": secret.generation}
        if secret.value.reveal() not in message:
            attrs["message"] = message[:MAX_WORDS]
        self._do(Note("login-refused", "the server refused the gateway's credential", attrs))
        if again and secret.former is not None:
            self._secret = secret.former
            self._server.rest()
            self._do(HangUp())
            self._dial()
            return None
        text = f"the server refused the credential that the gateway uses for this rule ({named})"
        return self._refusal("login-refused", text, f"The administrator should look at secret {secret.name}")
