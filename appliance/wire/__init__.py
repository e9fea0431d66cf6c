"""The wire: packets that pass the gateway become records in the ring, and the ring becomes the journal.

In: packets on the agent-facing and upstream-facing interfaces, leases over the control socket, rules from the settings.
Out: spans of records, leases and events in the journal; marks on packets, which the interlock forwards or drops.

    loader (program, maps, ring; pinned) ── drain (ring -> journal) ── leasing (leases -> journal -> kernel)
    interlock (nftables) ── interfaces (attach, watch) ── sweep (flows that ended) ── resets ── control (socket)
    daemon: the loop around them

What must never happen here: the ring is advanced before the journal has the span; a lease is in the kernel before it is
in the journal; a process that ends opens the gateway. Program, maps, ring and interlock outlive it.
"""
