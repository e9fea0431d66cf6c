"""What a MySQL server says until it has accepted the client, and while a client changes its user.

OK ends it. 0xFE asks for another method of authentication, by name; 0x01 goes on with the present one: of
caching_sha2_password it says that the fast way was enough (3), that the password itself is wanted (4), or is the
server's public key. What a server asks a person (MariaDB's `dialog`) has no such byte.
"""

from typing import Any, Final

from appliance.dissect import mysql_fields as fields
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_fields import EOF, MORE_DATA, OK, Ok
from appliance.dissect.mysql_session import Shared
from appliance.dissect.sql_frames import Frame, of_server
from appliance.dissect.sql_text import text
from appliance.model import Message

_STEPS: Final = {b"\x03": "fast", b"\x04": "full"}
_MAX_PROMPT = 256  # bytes of what a server asks a person


def greeting(frame: Frame, shared: Shared) -> Message:
    """The server's first packet. Raises for what does not fit."""
    said = fields.greeting(frame.body)
    shared.offered = said.capabilities
    shared.plugin = said.plugin
    shared.asked = frame.start
    shared.attrs["server_version"] = said.version
    shared.attrs["connection"] = said.connection
    attrs = {"server_version": said.version, "connection": said.connection, "method": said.plugin}
    return of_server("greeting", frame, said.version, attrs)


def step(frame: Frame, shared: Shared, started: int | None) -> Message | Ok:
    """What the server asks for; or its OK, which ends the log-in that the message at `started` began."""
    body = frame.body
    first = body[0]
    if first == OK:
        accepted = fields.ok(body, shared.codec, tracked=shared.known(session.SESSION_TRACK))
        shared.attrs["auth"] = shared.plugin
        shared.logged_in = True
        return accepted
    attrs: dict[str, Any] = {}
    shown = ""
    if first == EOF:
        name, _ = fields.until_nul(body, 1) if len(body) > 1 else (b"mysql_old_password", 0)
        shared.plugin = text(name)
    elif first == MORE_DATA:
        shown = "key" if body[1:].startswith(b"-----BEGIN ") else _STEPS.get(body[1:], "")
        if shown:
            attrs["step"] = shown
    else:
        shown = text(body[:_MAX_PROMPT].strip(b"\0\2\3\4"), shared.codec)
    shared.asked = frame.start
    attrs = {"method": shared.plugin, **attrs}
    return of_server("authentication", frame, f"{shared.plugin} {shown}".rstrip(), attrs, started)
