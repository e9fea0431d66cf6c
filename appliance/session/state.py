"""The recorder's state as bytes, and back.

A snapshot is a pickle behind a line of form (`StreamAssembler.FORM`) and digest. Pickles can run code when they are
read, so this holds only because DATA and everything in it belong to the appliance alone (mode 0700); as a second fence,
reading one back makes nothing but the appliance's own classes and a few harmless ones of the standard library.
"""

import enum
import hashlib
import pickle
from typing import Any, BinaryIO

from appliance.errors import DamagedEvidence
from appliance.session.assembler import Assembler

_NO_DIGEST = b"0" * 64
_BLOCK = 1 << 20
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


class _Digesting:
    """A file that is written through, and read back, with its SHA-256: no copy of the state is ever held."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _magic(form: str) -> bytes:
    return b"verbatim-recorder " + form.encode() + b" "


def dump(state: object, file: BinaryIO, form: str = Assembler.FORM) -> None:
    """Write one snapshot to an empty file."""
    magic = _magic(form)
    file.write(magic + _NO_DIGEST + b"\n")
    body = _Digesting(file)
    pickle.Pickler(body, protocol=5).dump(state)
    file.seek(len(magic))
    file.write(body.digest.hexdigest().encode())


def load(file: BinaryIO, form: str = Assembler.FORM) -> Any:
    """What `dump` was given. Raises `DamagedEvidence` for another version, damage, or foreign classes."""
    magic = _magic(form)
    line = file.readline(len(magic) + len(_NO_DIGEST) + 1)
    if not line.startswith(magic):
        raise DamagedEvidence("snapshot of the recorder is of another version; sessions are picked up midstream")
    start, digest = file.tell(), hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    if line[len(magic) :].rstrip(b"\n") != digest.hexdigest().encode():
        raise DamagedEvidence("snapshot of the recorder is damaged; sessions are picked up midstream")
    file.seek(start)
    try:
        return _Fenced(file).load()
    except Exception as error:  # unpickling raises whatever the classes raise
        raise DamagedEvidence(
            f"snapshot of the recorder can't be read ({type(error).__name__}); sessions are picked up midstream"
        ) from error
