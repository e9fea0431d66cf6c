"""The recorder's state as bytes, and back.

A snapshot is a pickle behind a line of version and digest. Pickles can run code when they are read, so this holds only
because DATA and everything in it belong to the appliance alone (mode 0700); as a second fence, reading one back makes
nothing but the appliance's own classes and a few harmless ones of the standard library.
"""

import enum
import hashlib
import io
import pickle
from typing import Any

from appliance.errors import DamagedEvidence
from appliance.session.assembler import VERSION

_MAGIC = b"verbatim-recorder %d " % VERSION
_HARMLESS = {
    "builtins": {"set", "frozenset", "bytearray", "complex", "range", "slice", "object"},
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "ipaddress": {"IPv4Address", "IPv4Network", "IPv6Address", "IPv6Network"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "uuid": {"SafeUUID", "UUID"},
}


def _member(owner: object, name: object) -> enum.Enum:
    """What Python 3.11 pickles of an enum's member is `getattr(Class, "NAME")`; that much of it and no more."""
    if isinstance(owner, enum.EnumMeta) and isinstance(name, str) and name in owner.__members__:
        member: enum.Enum = owner.__members__[name]
        return member
    raise pickle.UnpicklingError("an attribute has no place in a snapshot")


class _Fenced(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "appliance" and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        elif (module, name) == ("builtins", "getattr"):
            return _member
        elif name in _HARMLESS.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a snapshot")


def encode(state: object) -> bytes:
    """One snapshot's bytes."""
    body = pickle.dumps(state, protocol=5)
    return _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def decode(data: bytes) -> Any:
    """What `encode` was given. Raises `DamagedEvidence` for another version, damage, or foreign classes."""
    line, _, body = data.partition(b"\n")
    if not line.startswith(_MAGIC):
        raise DamagedEvidence("snapshot of the recorder is of another version; sessions are picked up midstream")
    if line[len(_MAGIC) :] != hashlib.sha256(body).hexdigest().encode():
        raise DamagedEvidence("snapshot of the recorder is damaged; sessions are picked up midstream")
    try:
        return _Fenced(io.BytesIO(body)).load()
    except Exception as error:  # unpickling raises whatever the classes raise
        raise DamagedEvidence(
            f"snapshot of the recorder can't be read ({type(error).__name__}); sessions are picked up midstream"
        ) from error
