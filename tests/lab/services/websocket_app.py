"""Echo by WebSocket (RFC 6455), with permessage-deflate (RFC 7692) for clients that offer it.

    python -m tests.lab.services.websocket_app CERTIFICATE KEY ADDRESS …

A message `close CODE REASON` makes it close the connection so.
"""

import asyncio
import ssl
import sys
from contextlib import AsyncExitStack

from websockets.asyncio.server import ServerConnection, serve

MAX_MESSAGE = 16 * 2**20


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            await connection.close(int(code), reason)
            return
        await connection.send(message)


async def run(certificate: str, key: str, *addresses: str) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    async with AsyncExitStack() as up:
        for address in addresses:
            await up.enter_async_context(serve(echo, address, 80, max_size=MAX_MESSAGE))
            await up.enter_async_context(serve(echo, address, 443, ssl=tls, max_size=MAX_MESSAGE))
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
