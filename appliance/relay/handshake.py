"""TLS handshakes over bytes in memory, and their failures in words."""

import ssl

from appliance.relay.failure import Failure


def begin(
    context: ssl.SSLContext,
    incoming: ssl.MemoryBIO,
    outgoing: ssl.MemoryBIO,
    *,
    server: bool,
    server_name: str | None,
    session: ssl.SSLSession | None,
) -> ssl.SSLObject:
    """A connection that has not said anything yet. Raises `Failure`: an agent may ask for any name."""
    try:
        return context.wrap_bio(incoming, outgoing, server, server_name, session=session)
    except (ValueError, TypeError) as error:
        raise Failure("tls", "the TLS handshake failed: the server's name is not usable") from error


def step(tls: ssl.SSLObject) -> bool:
    """Go on with what came; True when it is done, False when more must come. Raises `Failure`."""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLCertVerificationError as error:
        raise Failure("certificate", f"the certificate is not accepted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise Failure("tls", f"the TLS handshake failed: {reason_of(error)}") from error
    except ValueError as error:  # a server name that cannot be one
        raise Failure("tls", "the TLS handshake failed: the server's name is not usable") from error
    return True


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's word for what went wrong, as `tlsv1 alert unknown ca`."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()
