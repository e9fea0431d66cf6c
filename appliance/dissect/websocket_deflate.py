"""permessage-deflate (RFC 7692), one direction, without a compressor object that could not be stored.

Of the context that messages share only the last 32 KiB are kept: raw deflate goes on from them as a dictionary. Where a
message was lost or cut the dictionary is gone; what refers to it then is not decoded, and never decoded wrongly.
"""

import zlib
from typing import Final, NamedTuple

from appliance.model import Direction

WINDOW: Final = 1 << 15  # RFC 1951 §2
MAX_INFLATED: Final = 1 << 20  # bytes of one message that are kept
MAX_FOLLOWED: Final = 1 << 23  # bytes of one message that are inflated to keep the context
MAX_BLOCKS: Final = 64  # that end the deflate stream within one message, RFC 7692 §7.2.3.5
_STEP: Final = 1 << 18
_TAIL: Final = b"\x00\x00\xff\xff"


class Inflated(NamedTuple):
    data: bytes
    flags: tuple[str, ...]  # truncated, undecoded


class Inflater:
    """`extensions`: the server's Sec-WebSocket-Extensions, None if it was not seen. `agreed`: None if nobody knows."""

    def __init__(self, direction: Direction, extensions: str | None) -> None:
        self._takeover = True
        self._window = b""
        self.agreed: bool | None = None
        if extensions is not None:
            named = [[part.strip() for part in one.split(";")] for one in extensions.lower().split(",")]
            found = next((one for one in named if one[0] == "permessage-deflate"), None)
            self.agreed = found is not None
            self._takeover = found is None or f"{direction}_no_context_takeover" not in found

    @property
    def held(self) -> int:
        return len(self._window)

    def lose(self) -> None:
        self._window = b""

    def inflate(self, payload: bytes, *, whole: bool) -> Inflated:
        """One message. `whole` false: what is there of it."""
        kept, window = bytearray(), self._window if self._takeover else b""
        followed = 0
        left = payload + _TAIL if whole else payload
        try:
            for _ in range(MAX_BLOCKS):
                stream = zlib.decompressobj(-zlib.MAX_WBITS, zdict=window)
                while left and not stream.eof and followed <= MAX_FOLLOWED:
                    part = stream.decompress(left, _STEP)
                    left = stream.unconsumed_tail
                    followed += len(part)
                    kept += part[: MAX_INFLATED - len(kept)]
                    window = (window + part)[-WINDOW:]
                    if not part and not stream.eof:
                        break
                if not stream.eof or stream.unused_data in (b"", _TAIL):
                    break
                left = stream.unused_data
        except zlib.error:
            self.lose()
            return Inflated(b"", ("undecoded",))
        if whole and followed <= MAX_FOLLOWED:
            self._window = window if self._takeover else b""
        else:
            self.lose()
        return Inflated(bytes(kept), ("truncated",) if followed > len(kept) or not whole else ())
