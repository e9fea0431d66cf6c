"""Whose a lease is, and whose an access token: asked of the wire process and of issuers, in threads.

Both can take their time, and agents choose how often issuers are asked (a token may name any key). So leases, tokens
and the keys' upkeep have threads of their own: none of them waits for another one's.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from appliance import status
from appliance.config import Settings
from appliance.identity.jwks import MAX_WAITING
from appliance.identity.oidc import Verifier
from appliance.model import Identity
from appliance.wire.control import SOCKET, Client

MAX_IDENTITIES: Final = 16384
MAX_THREADS: Final = 64
SPARE: Final = 4  # threads for tokens that need not wait for an issuer


class Who:
    """For one loop; `holds` and `verify` raise `VerbatimError`."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._wire = Client(status.run_folder(settings.data) / SOCKET)
        self._verifier = Verifier(settings.issuers)
        self._known: OrderedDict[str, Identity] = OrderedDict()
        self._asked: dict[str, asyncio.Future[Identity]] = {}
        waiting = len(settings.issuers) * (MAX_WAITING + 1)  # at most, one of them asking the issuer
        self._leases = ThreadPoolExecutor(4, thread_name_prefix="leases")
        self._tokens = ThreadPoolExecutor(min(waiting + SPARE, MAX_THREADS), thread_name_prefix="tokens")
        self._upkeep = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._tending: Future[None] | None = None

    def known(self, lease: str) -> Identity | None:
        """Whose a lease is, if that was asked before."""
        known = self._known.get(lease)
        if known is not None:
            self._known.move_to_end(lease)
        return known

    async def holds(self, lease: str) -> Identity:
        """Whose a lease is: asked once, however many connections want to know."""
        known = self.known(lease)
        if known is not None:
            return known
        asked = self._asked.get(lease)
        if asked is None:
            asked = self._asked[lease] = self._loop.run_in_executor(self._leases, self._wire.identity, lease)
            asked.add_done_callback(lambda future: self._told(lease, future))
        return await asyncio.shield(asked)

    def _told(self, lease: str, future: asyncio.Future[Identity]) -> None:
        del self._asked[lease]
        if future.cancelled() or future.exception() is not None:
            return
        self._known[lease] = future.result()
        if len(self._known) > MAX_IDENTITIES:
            self._known.popitem(last=False)

    async def verify(self, token: str) -> Identity:
        """Whose an access token is."""
        verified = await self._loop.run_in_executor(self._tokens, self._verifier.verify, token)
        return verified.identity

    def tend(self) -> None:
        """Every few seconds: see to the issuers' keys."""
        if self._tending is None or self._tending.done():
            self._tending = self._upkeep.submit(self._verifier.tend, _unheard)

    def faults(self) -> dict[str, str]:
        return self._verifier.faults()

    def close(self) -> None:
        for pool in (self._leases, self._tokens, self._upkeep):
            pool.shutdown(wait=False, cancel_futures=True)


def _unheard(*changed: Any) -> None:
    """The API puts it on record when an issuer's keys change."""
