"""Names of servers to addresses, with the system's resolver, which blocks: each agent has a few threads' worth of it.

Who asks for names whose name servers never answer keeps its own share busy, and nobody else's.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from weakref import WeakValueDictionary

from appliance.relay.failure import Failure

THREADS: Final = 64
EACH: Final = 4  # names at one time of one owner


class Resolver:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="names")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def addresses(self, owner: str, host: str, port: int, seconds: float) -> list[str]:
        """The addresses of a host, in the system's order; `owner`: whose connection asks. Raises `Failure`."""
        try:
            return [plain(host.strip("[]"))]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(seconds):
                found = await self._ask(owner, host, port)
        except TimeoutError as error:
            raise Failure("time-out", f"{host}: its name was not resolved within {seconds:g} s") from error
        except (OSError, UnicodeError, ValueError) as error:
            raise Failure("unreachable", f"{host}: its name cannot be resolved") from error
        return list(dict.fromkeys(plain(str(entry[4][0]).partition("%")[0]) for entry in found))

    async def _ask(self, owner: str, host: str, port: int) -> list[Any]:
        turn = self._turns.setdefault(owner, asyncio.Semaphore(EACH))
        await turn.acquire()
        asked = self._loop.run_in_executor(self._pool, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

        def answered(future: asyncio.Future[Any]) -> None:
            turn.release()  # not before: a thread that nobody waits for any more is still busy
            if not future.cancelled():
                future.exception()

        asked.add_done_callback(answered)
        return list(await asyncio.shield(asked))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def plain(address: str) -> str:
    """In the one way of writing it; an IPv4 address that is mapped into IPv6 (RFC 4291 §2.5.5.2) as what it is, which
    is what the kernel connects to. Raises `ValueError`."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)
