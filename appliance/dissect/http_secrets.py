"""Where credentials lie in HTTP: header fields, OAuth token requests and their answers.

Ranges are positions in the bytes given. What the caller shows (text, attrs) is made from a masked copy of these bytes.

- Header fields: what follows the scheme in Authorization and Proxy-Authorization (RFC 9110 §11.4), API keys as a whole.
- Form bodies of OAuth (RFC 6749 §4, RFC 8693 §2.1, RFC 7009, RFC 7521): `SECRET_NAMES` and every `*_token`.
- JSON or form answers of token endpoints (RFC 6749 §5.1): the same names.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote_plus

Range = tuple[int, int, str]  # start, end, what

SECRET_NAMES = frozenset(
    ("client_secret", "password", "assertion", "client_assertion", "code", "code_verifier", "device_code")
)
_MARKS = frozenset(("grant_type", "client_secret", "client_assertion"))  # a form with one of these is a token request

_TOKENS = frozenset(("access_token", "refresh_token", "id_token"))

_STRAY = _TOKENS | SECRET_NAMES - {"code"}  # names that mean nothing else without a token request around them

_NAMES = (b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
SECRET_FIELDS = frozenset(name.decode() for name in _NAMES)  # their names, in lower case
_FIELD = re.compile(
    rb"^[ \t]*(%b)[ \t]*:"
    rb"([^\n]*(?:\n[ \t][^\n]*)*)" % b"|".join(_NAMES),
    re.IGNORECASE | re.MULTILINE,
)
_LINE = re.compile(rb"[^\r\n]+")
_VALUE = re.compile(rb"[^ \t](?:.*[^ \t])?", re.DOTALL)
_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)("|\Z|\\\Z)', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_LINE_END = re.compile(rb"[\r\n]")
_SPACE = re.compile(rb"[\x00-\x20\x7f]")
_PASSWORD = 5  # bytes before the password: a type and a length
_CUT_FIELD = re.compile(  # a line, and the next header line or the end of the head
    rb"([^\r\n]*)(?:\r?\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r?\n|\r\n\r\n)"
)
_VALUE_ONLY = re.compile(rb"[A-Za-z0-9._~+/%*-]+")
_CUT_MEMBER = re.compile(rb'([A-Za-z_]*)"[ \t]*:[ \t]*"((?:[^"\\]|\\.)*)')  # JSON, from within a member's name
_CUT_STRING = re.compile(rb'[ \t]*:?[ \t]*"?([^"\s\x00-\x1f]{4,})"[ \t\r\n]*[,}]')  # JSON, from within a string
_RANDOM = re.compile(rb"(?=[^0-9]{0,64}[0-9])(?=[^A-Za-z]{0,64}[A-Za-z])[A-Za-z0-9._~+/=%-]{16,8192}")
_ESCAPE = re.compile(rb"\\u00([0-7][0-9a-fA-F])")


def mask(data: bytes, ranges: list[Range]) -> bytes:
    """The same bytes with asterisks in `ranges`."""
    if not ranges:
        return data
    masked = bytearray(data)
    for start, end, _ in ranges:
        masked[start:end] = b"*" * (end - start)
    return bytes(masked)


def field_secrets(block: bytes) -> list[Range]:
    """Credentials in a block of header lines, whole or cut off anywhere; folded lines too."""
    folded = block.lower()
    if b"authorization" not in folded and b"api-key" not in folded:
        return []
    found: list[Range] = []
    for field in _FIELD.finditer(block):
        name = field.group(1).lower()
        scheme = name.endswith(b"authorization")
        for line in _LINE.finditer(block, field.start(2), field.end(2)):
            value = _VALUE.search(line.group())
            if value is None:
                continue
            start, end = line.start() + value.start(), line.start() + value.end()
            schemed = scheme and line.start() == field.start(2)  # not on a folded line: it may come by itself
            gap = re.search(rb"[ \t]+", block[start:end]) if schemed else None
            if gap is not None:
                start += gap.end()
            found.append((start, end, "authorization" if name.endswith(b"authorization") else "api-key"))
    return found


def opens_secret_field(line: bytes) -> bool:
    """Whether the rest of a header line that begins like this is a credential, or may be: the name may be cut too."""
    name = line.strip().lower()
    return _FIELD.match(line) is not None or (name != b"" and any(field.startswith(name) for field in _NAMES))


def missing_name(block: bytes) -> bytes:
    """What must stand before `block` if it begins within the name of a credential's field; b"" if it does not."""
    name, colon, value = block.partition(b":")
    name = name.rstrip(b" \t").lower()
    whole = [field for field in _NAMES if colon and value[:1] != colon and field != name and field.endswith(name)]
    return whole[0][: len(whole[0]) - len(name)] if whole else b""


def stray_secrets(block: bytes) -> list[Range]:
    """Credentials in bytes that have lost their framing: header lines, token answers, token requests.

    Bodies are looked at line by line: what one line says must not depend on how many came together.
    """
    found = field_secrets(block)
    for line in _LINE.finditer(block) if b'"' in block or b"=" in block else ():
        text = line.group()
        inside = json_secrets(text) if b'"' in text else []
        if b'"grant_type"' not in text:
            inside = [one for one in inside if one[2] in _STRAY]
        inside += (form_secrets(text, certain=False) or []) if b"=" in text else []
        found += [(line.start() + start, line.start() + end, what) for start, end, what in inside]
    return found


def torn_secrets(block: bytes) -> list[Range]:
    """Credentials at the start of bytes that begin anywhere, within a name or a value too.

    What shows them: the end of a secret's name before its value, other fields of a form in the same line, header lines
    behind it, the end of a JSON string, PostgreSQL's PasswordMessage; or that it looks random. A short value without
    any of these can't be told.
    """
    if block[:3] == b"p\0\0" and len(block) > _PASSWORD:
        end = min(1 + int.from_bytes(block[1:_PASSWORD], "big"), len(block))
        return [(_PASSWORD, end, "password")] if end > _PASSWORD else []
    if cut := _CUT_FIELD.match(block):
        return [(0, cut.end(1), "authorization")] if cut[1] and not _FIELD.match(block) else []
    line = block[: found.start()] if (found := _LINE_END.search(block)) else block
    if cut := _CUT_MEMBER.match(line):
        return [(*cut.span(2), "token")] if _may_end_secret(cut[1]) and cut[2] else []
    if cut := _CUT_STRING.match(block):
        return [(*cut.span(1), "token")]
    if (b"&" in line or b"=" in line) and not _SPACE.search(line):
        pairs = list(_pairs(line))
        named = form_secrets(line, certain=True) or []
        name, start, stop = pairs[0]
        if start == 0 or b"=" not in line[:start]:  # a value without its name
            torn: list[Range] = [(0, stop, "token")] if stop else []
            return [*torn, *named] if any(one for one, _, _ in pairs[1:]) else _random(line)
        secret = _may_end_secret(name.encode()) if name else _VALUE_ONLY.fullmatch(line, start, stop) is not None
        if start < stop and secret and (not named or named[0][0] != start):
            named.insert(0, (start, stop, "token"))
        return named or _random(line)
    return _random(line)


def _may_end_secret(end: bytes) -> bool:
    """Whether a name that ends like this may be a credential's."""
    end = end.lower()
    return any(name.encode().endswith(end) for name in (*SECRET_NAMES, *_TOKENS, "token"))


def _random(line: bytes) -> list[Range]:
    found = _RANDOM.match(line)
    return [(0, found.end(), "token")] if found else []


def ends_in_secret_field(block: bytes) -> bool:
    """Whether the last line of whole lines is a credential's, so that a folded line behind it is too."""
    return max((field.end() for field in _FIELD.finditer(block)), default=-2) >= len(block) - 1


def _is_secret(name: str) -> bool:
    return name in SECRET_NAMES or name.endswith("_token")


def _pairs(body: bytes) -> Iterator[tuple[str, int, int]]:
    """Decoded name and range of the value of every field of a form."""
    place = 0
    for pair in body.split(b"&"):
        name, equals, value = pair.partition(b"=")
        start = place + len(name) + len(equals)
        place += len(pair) + 1
        yield unquote_plus(name.decode("latin-1")).strip().lower(), start, start + len(value)


def form_secrets(body: bytes, *, certain: bool) -> list[Range] | None:
    """Credentials in a form body; None if it is no token request. `certain`: treat it as one in any case."""
    pairs = list(_pairs(body))
    if not certain and not any(name in _MARKS for name, _, _ in pairs):
        return None
    return [(start, end, name) for name, start, end in pairs if start < end and (_is_secret(name) or name == "token")]


def json_secrets(body: bytes) -> list[Range]:
    """String values of credential names anywhere in a JSON text, whole or cut off anywhere."""
    found: list[Range] = []
    place = 0
    while (key := _STRING.search(body, place)) is not None:
        place = key.end()
        colon = _COLON.match(body, place)
        if colon is None:
            continue
        place = colon.end()
        if body[place : place + 1] != b'"':
            continue
        plain = _ESCAPE.sub(lambda escape: bytes([int(escape.group(1), 16)]), key.group(1))
        name = plain.decode("latin-1").lower()
        value = _STRING.match(body, place)
        if value is None:
            continue
        place = value.end()
        if _is_secret(name):
            start, end = value.start() + 1, value.end() - (1 if value.group(2) == b'"' else 0)
            if start < end:
                found.append((start, end, name))
    return found
