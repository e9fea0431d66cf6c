"""Start lines, field lines and body framing of HTTP/1.x (RFC 9112 §3 to §6). Pure; credentials are masked before.

Framing that two parsers may read differently (the raw material of request smuggling) is flagged `smuggling`, and each
case of it is named: see `Head.cases`.
"""

import re
from functools import lru_cache

import msgspec

from appliance.dissect import Match
from appliance.dissect.http_secrets import SECRET_FIELDS
from appliance.model import Direction

MAX_HEAD = 1 << 16  # bytes of a start line with its fields, or of trailers
MAX_FIELDS = 512  # listed in a message's attrs
MAX_LENGTH = 2**63 - 1  # of a Content-Length
MAX_REMEMBERED = 2048  # bytes of a head whose field lines are remembered: the next ones will have the same
MAX_PREFIX = 4096  # a detector must have decided on this much
MAX_BLANK = 8  # bytes of empty lines before a request, when detecting

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST = re.compile(rb"(%b{1,64}) ([^\x00-\x20\x7f]+) HTTP/(1\.[0-9])" % _TOKEN)
_STATUS = re.compile(rb"HTTP/(1\.[0-9]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")
_NAME = re.compile(rb"%b+" % _TOKEN)
_NUMBER = re.compile(rb"[0-9]{1,19}")
_USUAL_LENGTH = re.compile(r"[0-9]{1,15}")
_FIELD = re.compile(rf"({_TOKEN.decode()}++):([\t\x20-\x7e]*+)")
START = {  # a start line at the start of a line, to resynchronise at
    Direction.CLIENT: re.compile(rb"^[A-Z][A-Z-]{1,31} [^\x00-\x20\x7f]+ HTTP/1\.[0-9]\r?\n", re.MULTILINE),
    Direction.SERVER: re.compile(rb"^HTTP/1\.[0-9] [1-9][0-9]{2}(?: [^\r\n]*)?\r?\n", re.MULTILINE),
}
_BEGUN = re.compile(
    rb"[A-Z][A-Z-]{0,31}(?: (?:[^\x00-\x20\x7f]+(?: (?:H|HT|HTT|HTTP|HTTP/|HTTP/1|HTTP/1\.(?:[0-9]\r?)?)?)?)?)?"
)
_OPENS = re.compile(rb"[A-Z][A-Z-]{1,31} [^\x00-\x20\x7f]+ HTTP/1\.[0-9]\r?\n")
_LONG = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|CONNECT|TRACE|PROPFIND|REPORT|SEARCH) (?:/|https?://)[^\x00-\x20\x7f]*"
)
_ANSWERS = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9]{2}[ \r\n]")
_ANSWER_BEGUN = re.compile(rb"H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[0-9](?: (?:[1-9][0-9]{0,2})?)?)?)?)?)?)?)?)?")

_DECIDING = frozenset(("host", "content-length", "transfer-encoding", "authorization"))
_NOT_IN_TRAILERS = _DECIDING | {"proxy-authorization", "connection", "upgrade", "te"}
_CODINGS = frozenset(("chunked", "gzip", "x-gzip", "deflate", "compress", "x-compress"))

Field = tuple[str, str, list[str]]  # name in lower case, value; both as messages list them, which many may share


class Head(msgspec.Struct):
    """A start line and its fields. `flags` and `notes` say what was odd about them, `cases` what parsers differ about:

    `cl-te`: Content-Length beside Transfer-Encoding. `cl-conflict`, `cl-invalid`: several lengths; one that is none.
    `te-unknown`, `te-repeated`, `te-not-last`, `te-version`: a coding that is not registered, or empty; chunked twice;
    chunked not at the end; any in HTTP/1.0. `space-before-colon`, `name-invalid`: of these two fields. `obs-fold`,
    `bare-lf`, `bare-cr`, `nul`: of any line. `host`: several. `connection-field`: a Connection that takes away a field
    that decides. `field-name`: one that some read as such, with `_` for `-`. Of a body: `chunk-size`, `chunk-space`,
    `chunk-end`; `trailer`: a field that decides, behind it.
    """

    version: str = ""
    method: str = ""
    target: str = ""
    status: int = 0
    reason: str = ""
    fields: list[list[str]] = []  # name and value of each
    flags: set[str] = set()  # malformed, smuggling
    notes: set[str] = set()  # bare_lf, obs_fold
    cases: set[str] = set()
    named: dict[str, list[str]] = {}  # values of `fields` by name in lower case

    def values(self, name: str) -> list[str]:
        return self.named.get(name, [])

    def first(self, name: str) -> str:
        found = self.named.get(name)
        return found[0] if found else ""

    def tokens(self, name: str) -> list[str]:
        """The members of a list field, in lower case."""
        return [part.strip().lower() for value in self.values(name) for part in value.split(",") if part.strip()]


class Framing(msgspec.Struct, frozen=True):
    """How the body ends: `length` bytes, `chunked`, or neither: with the connection. `broken`: nobody can tell."""

    length: int | None = None
    chunked: bool = False
    broken: bool = False


NOTHING = Framing(length=0)


def detect(client: bytes, server: bytes) -> Match:
    """By the request's start line; by the answer's where the request was not seen, or not whole."""
    asked = _detect_request(client) if client else Match.MORE
    if asked is not Match.MORE or not server:
        return asked
    if _ANSWERS.match(server):
        return Match.YES
    if client:
        return asked
    return Match.MORE if _ANSWER_BEGUN.fullmatch(server) else Match.NO


def _detect_request(client: bytes) -> Match:
    data = client[:MAX_BLANK].lstrip(b"\r\n") + client[MAX_BLANK:]
    if _OPENS.match(data):
        return Match.YES
    if len(client) < MAX_PREFIX:
        return Match.MORE if not data or _BEGUN.fullmatch(data) else Match.NO
    return Match.YES if _LONG.fullmatch(data) else Match.NO


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def is_start_line(line: bytes, direction: Direction) -> bool:
    pattern = _REQUEST if direction is Direction.CLIENT else _STATUS
    return pattern.fullmatch(line.removesuffix(b"\n").removesuffix(b"\r")) is not None


def parse_head(block: bytes, direction: Direction) -> Head | None:
    """A start line and field lines, with or without the empty line behind them; None if the start line is none."""
    first, _, rest = block.partition(b"\n")
    head = _started(first.removesuffix(b"\r"), direction)
    if head is None:
        return None
    if not first.endswith(b"\r"):
        head.notes.add("bare_lf")
        head.cases.add("bare-lf")
    parse_fields(rest, head)
    return head


def usual_head(line: str, fields: list[Field], direction: Direction) -> Head | None:
    """The same for a start line in ASCII and what `usual_fields` gives, both ended by line ends as they should be."""
    head = _started(line.encode("ascii"), direction)
    if head is not None:
        _add(head, fields)
    return head


def _started(line: bytes, direction: Direction) -> Head | None:
    head = Head()
    if direction is Direction.CLIENT:
        found = _REQUEST.fullmatch(line)
        if found is None:
            return None
        head.method, head.target, head.version = map(text_of, found.groups())
    else:
        found = _STATUS.fullmatch(line)
        if found is None:
            return None
        version, status, reason = found.groups()
        head.version, head.status, head.reason = text_of(version), int(status), text_of(reason or b"")
    return head


def _add(head: Head, fields: list[Field]) -> None:
    for lower, value, listed in fields:
        head.fields.append(listed)
        head.named.setdefault(lower, []).append(value)


def usual_fields(lines: list[str], size: int, *, masked: bool) -> list[Field]:
    """Field lines of `size` bytes in all, with nothing odd about them and, unless they are `masked`, no credential.

    Raises ValueError where that is not so.
    """
    read = _masked_field if masked else _plain_field
    return [*map(read if size <= MAX_REMEMBERED else read.__wrapped__, lines)]


@lru_cache(1024)
def _masked_field(line: str) -> Field:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise ValueError("an odd field line")
    value = found[2].strip(" \t")
    return found[1].lower(), value, [found[1], value]


@lru_cache(1024)
def _plain_field(line: str) -> Field:
    read = _masked_field.__wrapped__(line)
    if read[0] in SECRET_FIELDS:
        raise ValueError("a credential, which is not remembered")
    return read


def parse_fields(block: bytes, head: Head) -> None:
    """Field lines up to the empty line, appended to `head.fields`."""
    if block.endswith(b"\r\n\r\n") and block.isascii():
        try:
            found = usual_fields(block[:-4].decode("ascii").split("\r\n"), len(block), masked=True)
        except ValueError:
            pass
        else:
            _add(head, found)
            return
    _parse_lines(block, head)
    for name, value in head.fields:
        head.named.setdefault(name.lower(), []).append(value)


def _parse_lines(block: bytes, head: Head) -> None:
    lines = block.split(b"\n")
    for number, raw in enumerate(lines):
        line = raw.removesuffix(b"\r")
        if not line:
            break
        if line is raw and number < len(lines) - 1:
            head.notes.add("bare_lf")
            head.cases.add("bare-lf")
        if b"\r" in line or b"\x00" in line:
            head.flags.add("malformed")
            head.cases.update(("bare-cr",) if b"\r" in line else (), ("nul",) if b"\x00" in line else ())
        if line[0] in b" \t":
            head.notes.add("obs_fold")
            head.cases.add("obs-fold")
            if head.fields:
                name, value = head.fields[-1]
                head.fields[-1] = [name, f"{value} {text_of(line.strip())}".strip()]
            continue
        key, colon, value_bytes = line.partition(b":")
        if not colon or not _NAME.fullmatch(key):
            head.flags.add("malformed")
            if key.strip().lower() in (b"transfer-encoding", b"content-length"):
                head.cases.add("space-before-colon" if colon else "name-invalid")
            if not colon:
                continue
        head.fields.append([text_of(key.strip()), text_of(value_bytes.strip(b" \t"))])


def request_framing(head: Head) -> Framing:
    """RFC 9112 §6.3, for a request. Adds flags to `head`."""
    odd = {
        "host": len(head.values("host")) > 1,
        "connection-field": not _DECIDING.isdisjoint(head.tokens("connection")),
        "field-name": any("_" in name and name.replace("_", "-") in _DECIDING for name in head.named),
    }
    head.cases.update(case for case, found in odd.items() if found)
    framing = _framing(head)
    if framing is None:
        return NOTHING
    if (
        framing.length is None and not framing.chunked and not framing.broken
    ):  # a transfer coding that does not end in chunked
        head.flags.add("malformed")
        head.cases.add("te-not-last")
        return Framing(broken=True)
    return framing


def check_trailers(trailers: Head) -> None:
    """Adds a case to fields behind a body."""
    if not _NOT_IN_TRAILERS.isdisjoint(trailers.named):
        trailers.cases.add("trailer")


def response_framing(head: Head, method: str) -> Framing:
    """RFC 9112 §6.3, for the answer to `method` ("" if unknown). Adds flags to `head`."""
    if method == "HEAD" or head.status < 200 or head.status in (204, 304):
        return NOTHING
    framing = _framing(head)
    if framing is None:
        return Framing()
    return Framing() if framing.broken else framing


def _framing(head: Head) -> Framing | None:
    """None: neither field. A transfer coding wins over a length."""
    given = head.values("content-length")
    if len(given) == 1 and "transfer-encoding" not in head.named and _USUAL_LENGTH.fullmatch(given[0]):
        return Framing(length=int(given[0]))
    lengths = [part.strip() for value in given for part in value.split(",")]
    codings = head.tokens("transfer-encoding")
    if codings:
        chunked = codings.count("chunked")
        odd = {
            "cl-te": bool(lengths),
            "te-version": head.version == "1.0",
            "te-repeated": chunked > 1,
            "te-not-last": codings[-1] != "chunked",
            "te-unknown": len(codings) > 4 or not _CODINGS.issuperset(codings),
        }
        head.cases.update(case for case, found in odd.items() if found)
        return Framing(chunked=codings[-1] == "chunked")
    if head.values("transfer-encoding"):
        head.cases.add("te-unknown")
    if not lengths:
        return None
    if not all(_NUMBER.fullmatch(length.encode()) for length in lengths) or len(set(map(int, lengths))) != 1:
        valid = all(_NUMBER.fullmatch(length.encode()) for length in lengths)
        head.flags.add("malformed")
        head.cases.add("cl-conflict" if valid else "cl-invalid")
        return Framing(broken=True)
    length = int(lengths[0])
    return Framing(length=length) if length <= MAX_LENGTH else Framing(broken=True)
