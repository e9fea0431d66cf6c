"""SCRAM-SHA-256 (RFC 5802, RFC 7677) as a client, without channel binding: the log-in that a gateway does for an agent.

The arithmetic is scramp's. Bounded here is what a hostile server could ask for: its iterations are work for the whole
process (100,000 of them take some 50 ms), and a server that cannot sign knows nothing of the password.
"""

from typing import Final

from scramp import ScramClient, ScramException

from appliance.identity.secret_text import SecretText
from appliance.relay.failure import Failure

MECHANISM: Final = "SCRAM-SHA-256"
MAX_ITERATIONS: Final = 100_000
MAX_MESSAGE: Final = 2048  # bytes of a server's message
NOBODY: Final = "*"  # PostgreSQL takes the user's name from the start-up message


class Scram:
    """One exchange: `first`, `final`, `verify`, in this order. Each raises `Failure`. `nonce`: for tests."""

    def __init__(self, password: SecretText, nonce: str | None = None) -> None:
        try:
            self._client = ScramClient([MECHANISM], NOBODY, password.reveal(), c_nonce=nonce)
        except ScramException:
            text = "the credential's password has characters that SCRAM does not take (RFC 4013)"
            raise Failure("secret", text) from None

    def first(self) -> bytes:
        said: str = self._client.get_client_first()
        return said.encode()

    def final(self, server_first: bytes) -> bytes:
        """The answer to the server's first message, with the proof of the password."""
        try:
            self._client.set_server_first(_text(server_first))
            iterations = int(self._client.iterations)
            if iterations > MAX_ITERATIONS:
                text = f"the server asks for {iterations} iterations of SCRAM; at most {MAX_ITERATIONS} are done"
                raise Failure("scram", text)
            said: str = self._client.get_client_final()
        except (ScramException, ValueError, LookupError, TypeError):
            text = "the server's SCRAM message is malformed, of another nonce, or asks for less than 4096 iterations"
            raise Failure("scram", text) from None
        return said.encode()

    def verify(self, server_final: bytes) -> None:
        """The server's last message proves that it knows the password too."""
        try:
            self._client.set_server_final(_text(server_final))
        except (ScramException, ValueError, LookupError, TypeError):
            raise Failure("server-signature", "the server does not prove that it knows the password") from None


def _text(message: bytes) -> str:
    if len(message) > MAX_MESSAGE:
        raise ValueError
    return message.decode()
