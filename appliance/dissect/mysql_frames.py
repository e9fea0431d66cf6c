"""The packets of MySQL: their header, the bytes of the protocol, where to go on behind a gap.

A packet is a length of 3 bytes, a sequence number, and as many bytes ("MySQL Packets" of the MySQL source code
documentation; MariaDB Knowledge Base, "0 - Packet"). One of `FULL` bytes is continued by the next one. Packets are told
of as `Frame`s, whose `kind` is the sequence number: 0 begins a command, and its answer counts on from there.
"""

import re
import struct
from typing import Final

HEADER = 4
WORD: Final = struct.Struct("<I")  # length in the lower 24 bits, then the sequence number
FULL = 0xFFFFFF  # bytes of a packet that the next one continues

# Commands ("Command Phase"); a packet of the client begins with one when its sequence number is 0.
QUIT, INIT_DB, QUERY, FIELD_LIST = 0x01, 0x02, 0x03, 0x04
SHUTDOWN, STATISTICS, PROCESS_INFO = 0x08, 0x09, 0x0A
PROCESS_KILL, PING, CHANGE_USER, BINLOG_DUMP = 0x0C, 0x0E, 0x11, 0x12
STMT_PREPARE, STMT_EXECUTE, STMT_SEND_LONG_DATA, STMT_CLOSE = 0x16, 0x17, 0x18, 0x19
STMT_RESET, SET_OPTION, STMT_FETCH, BINLOG_DUMP_GTID = 0x1A, 0x1B, 0x1C, 0x1E
RESET_CONNECTION, STMT_BULK_EXECUTE = 0x1F, 0xFA

NAMES: Final = {
    0x00: "SLEEP",
    QUIT: "QUIT",
    INIT_DB: "INIT_DB",
    QUERY: "QUERY",
    FIELD_LIST: "FIELD_LIST",
    0x05: "CREATE_DB",
    0x06: "DROP_DB",
    0x07: "REFRESH",
    SHUTDOWN: "SHUTDOWN",
    STATISTICS: "STATISTICS",
    PROCESS_INFO: "PROCESS_INFO",
    0x0B: "CONNECT",
    PROCESS_KILL: "PROCESS_KILL",
    0x0D: "DEBUG",
    PING: "PING",
    0x0F: "TIME",
    0x10: "DELAYED_INSERT",
    CHANGE_USER: "CHANGE_USER",
    BINLOG_DUMP: "BINLOG_DUMP",
    0x13: "TABLE_DUMP",
    0x14: "CONNECT_OUT",
    0x15: "REGISTER_SLAVE",
    STMT_PREPARE: "STMT_PREPARE",
    STMT_EXECUTE: "STMT_EXECUTE",
    STMT_SEND_LONG_DATA: "STMT_SEND_LONG_DATA",
    STMT_CLOSE: "STMT_CLOSE",
    STMT_RESET: "STMT_RESET",
    SET_OPTION: "SET_OPTION",
    STMT_FETCH: "STMT_FETCH",
    0x1D: "DAEMON",
    BINLOG_DUMP_GTID: "BINLOG_DUMP_GTID",
    RESET_CONNECTION: "RESET_CONNECTION",
    STMT_BULK_EXECUTE: "STMT_BULK_EXECUTE",
}
UNANSWERED: Final = frozenset({QUIT, STMT_SEND_LONG_DATA, STMT_CLOSE})

WINDOW = 16384  # bytes of the server that are looked at together behind a gap
CHAIN = 4  # packets in a row that it takes to go on
_COMMANDS: Final = frozenset(NAMES) - {0x00}
_COMMAND: Final = re.compile(rb"(?=..\x00\x00[\x01-\x1f\xfa])", re.DOTALL)
_PACKET: Final = re.compile(rb"(?=[^\x00].\x00|.[^\x00]\x00)", re.DOTALL)


def search_client(data: bytes) -> tuple[int, int]:
    """Where to go on in bytes whose context is lost: (place, 0), or (bytes to pass over, bytes needed from there).

    A place is a command of at most 65,535 bytes that ends the data, or that another one follows.
    """
    size = len(data)
    for found in _COMMAND.finditer(data):
        at = found.start()
        length = data[at] | data[at + 1] << 8
        end = at + HEADER + length
        if not length:
            continue
        if end > size:
            return at, end - at
        if end == size or (end + 5 <= size and _begins_command(data, end)):
            return at, 0
        if end + 5 > size:
            return at, end + 5 - at
    keep = max(size - HEADER, 0)
    return keep, size - keep + 1


def is_turn(data: bytes) -> bool:
    """Whether what a client says once the server has spoken is one command."""
    return len(data) > HEADER and _begins_command(data, 0) and WORD.unpack_from(data)[0] == len(data) - HEADER


def _begins_command(data: bytes, at: int) -> bool:
    return not data[at + 2] and not data[at + 3] and data[at + 4] in _COMMANDS


def search_server(data: bytes) -> tuple[int, int]:
    """The same for the server, whose packets are known by their numbers only: `CHAIN` of them that count on."""
    size = len(data)
    if size >= WINDOW:
        for found in _PACKET.finditer(data):
            if _counts_on(data, found.start()):
                return found.start(), 0
        return size - WINDOW // 2, WINDOW
    return 0, WINDOW


def _counts_on(data: bytes, at: int) -> bool:
    number = -1
    for _ in range(CHAIN):
        if at + HEADER > len(data) or data[at + 2]:
            return False
        length = data[at] | data[at + 1] << 8
        if not length or (number >= 0 and data[at + 3] != number):
            return False
        number = (data[at + 3] + 1) & 0xFF
        at += HEADER + length
    return True
