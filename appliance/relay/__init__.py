"""Relays: terminate a flow, record its plaintext, forward it.

In: connections that the program steered here, or that agents made to the explicit proxy. Out: records in the worker's
journal stream (journal/relayed.py), and the same bytes to the other side. Never here: a byte that is forwarded before
the journal has it; a token or credential in the journal; memory that grows with a peer's will.

    service     the processes: one worker a processor
    worker      one process: listeners, limits, time-outs, leases
    accepting   the listeners, and when nobody is accepted
    who         whose a lease or a token is; resolve: names of servers, without one agent's keeping others waiting
    opening     what a new flow is, and who carries it
    flow        its legs, its place on record, its end
    splice      bytes pass unchanged
    mediation   carries out what a mediator says
    mediator    what a protocol part is asked, and what it may say: sans-IO
    ssh         both sides of an SSH connection by asyncssh, messages passed one by one: ssh_login, ssh_channels
    leg         one non-blocking socket, plain or TLS
    recording   the worker's journal stream: a turn of the loop is one frame, then what is in it is forwarded
    dial, tls, route, kernel: connections to servers, contexts, rules, the program's view

In `splice` mode bytes pass unchanged and nothing but TLS is understood; in `mediate` mode a mediator reads them.
"""
