"""Sessions: the frames of a journal in, rows for the store out. Pure: no file, no socket, no clock.

    Frame ─► Assembler ─► Arrivals (5-tuple, kernel's flow) ─► TcpSession / DatagramSession
                              │ fragments                      │ Stream (one direction of TCP)
                              ▼                                ▼
                          defragmented                   Data · Gap · Overlap · Late · Stray
                                                               │
                                    Conversation (dissect) ◄───┤
                                          │ messages,          ▼
                                          │ redactions ──► Outlet (chunks) ─► rows

A relay's stream (`journal/relayed.py`) has the plaintext in order already, so it takes a shorter way:
`RelayAssembler` ─► `RelayedFlows` (relay's flow) ─► `RelayedSession` ─► `Conversation` and `Outlet` as above. There,
time passes from frame to frame.

What must hold
- The same journal gives the same ids, rows and row numbers, whatever the recorder's speed or restarts: every rule that
  waits (coalescing, holding back, time-outs) waits for *recorded* data or time. Cutting spans elsewhere changes nothing
  but the ids, which come from record positions.
- No byte is given away silently: what has no place in a stream becomes a finding, and, where its bytes were recorded,
  a copy beside the stream.
- Everything that an attacker can make grow is bounded, and weighed (`memory.py`): out-of-order bytes and segments,
  sessions, fragments, copies, findings.
- A byte that a dissector may still redact is not in any row.

Recorded is not delivered. A segment is recorded before it is forwarded and can be lost behind the gateway; the sender
then repeats it. An identical repetition is no finding; a different one is a conflict: the stream has the copy that a
Linux receiver keeps of segments that arrive in this order, the other one is kept beside it. What Linux drops on arrival
(wrong checksum, old time stamp, beyond the window, ...) is taken only when the receiver acknowledges it. So the stream
is what the receiver read, unless a segment of a conflict was lost behind the gateway, the receiver is another system,
or Linux joined two waiting segments or not, as their memory happened to lie: then nobody but the receiver knows, and
both copies are there.
"""
