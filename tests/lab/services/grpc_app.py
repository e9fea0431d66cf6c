"""A gRPC service with a method of each of the four kinds.

    python -m tests.lab.services.grpc_app CERTIFICATE KEY TLS_PORT CLEAR_PORT ADDRESS …

Messages have one field, number 1, a string; so nothing has to be generated from a schema:

    /lab.Shop/Find     one request, one response: the request in capitals; for `missing` status NOT_FOUND
    /lab.Shop/List     one request, a number n: n responses
    /lab.Shop/Gather   any number of requests: one response, all of them joined by commas
    /lab.Shop/Chat     any number of requests: a response to each
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

SERVICE = "lab.Shop"
MAX_LISTED = 10_000


def pack(text: str) -> bytes:
    """A message: field 1 of wire type LEN (Protocol Buffers, Encoding)."""
    data = text.encode()
    size, left = bytearray(), len(data)
    while left > 0x7F:
        size.append(left & 0x7F | 0x80)
        left >>= 7
    return b"\x0a" + bytes(size) + bytes((left,)) + data


def unpack(message: bytes) -> str:
    at = 1
    while message[at] & 0x80:
        at += 1
    return message[at + 1 :].decode()


def find(request: str, context: Any) -> str:
    if request == "missing":
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name")
    context.set_trailing_metadata((("x-found", "1"),))
    return request.upper()


def listed(request: str, context: Any) -> Iterator[str]:
    for number in range(min(int(request), MAX_LISTED)):
        yield f"item {number}"


def gather(requests: Iterator[str], context: Any) -> str:
    return ",".join(requests)


def chat(requests: Iterator[str], context: Any) -> Iterator[str]:
    for request in requests:
        yield "you said " + request


def main(certificate: str, key: str, port: str, clear_port: str, *addresses: str) -> None:
    methods = {
        "Find": grpc.unary_unary_rpc_method_handler(find, unpack, pack),
        "List": grpc.unary_stream_rpc_method_handler(listed, unpack, pack),
        "Gather": grpc.stream_unary_rpc_method_handler(gather, unpack, pack),
        "Chat": grpc.stream_stream_rpc_method_handler(chat, unpack, pack),
    }
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    own = grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])
    for address in addresses:
        literal = f"[{address}]" if ":" in address else address
        server.add_secure_port(f"{literal}:{port}", own)
        server.add_insecure_port(f"{literal}:{clear_port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
