"""The wire: packets that pass the gateway become records in the ring, and the ring becomes the journal.

In: packets on the agent-facing and upstream-facing interfaces, leases over the control socket, rules from the settings.
Out: spans of records, leases and events in the journal; marks on packets, which the interlock forwards or drops.

    loader (programs, maps, ring; pinned) ── drain (ring -> journal) ── former (rings that were replaced)
    control (socket) ── leasing (leases -> journal -> kernel) ── neighbours (routes, link-layer addresses)
    watch ── filters (TC) on interfaces, interlock (nftables) ── faults (what is wrong, what was put back)
    sweep (flows that ended) ── quotas (who has how many) ── resets (told to both ends) ── windows (opened again)
    notes (what the process itself has to say) ── untold (refusals without a record) ── news (changes in the kernel)
    answers (to requests, and what the process says of itself) ── standstill (when it did nothing)
    spooled (what other processes left for the journal)
    relays (processes that took flows, and died) ── steering (how they register) ── routing (the way to their sockets)
    names ── naming (addresses of hosts that rules name, from DNS answers) ── program ── built (compiling, kept)
    daemon: the loop around them ── teardown (everything out of the kernel again, what the ring held journaled)

What must never happen here: the ring is advanced before the journal has the span; a lease is in the kernel before it is
in the journal; a process that ends opens the gateway. Program, maps, ring and interlock outlive it.
"""
