"""The recorder: journal in, rows into the store, each exactly once.

    Reader ─► Assembler ─► batch ─► store.insert ─► snapshot ─► release of journal segments
                 ▲                                     │
                 └────────────── after a crash ◄───────┘

A snapshot (assembler and journal cursor) is written only when every row up to it is stored. After a crash the recorder
reads on from the last snapshot; that gives the same rows again, and since the rows of one session in one table are
stored in order, those already there are a prefix: they are skipped by `last_seqs`, events by `last_position`. That
ends when all is read that the journal held at the start, however much follows. Other limits (`record.max_memory`, ...)
would give other rows: they hold from the first snapshot behind that.

While the store does not answer, the batch is kept as it is (a repeated batch is recognised by its content) and nothing
more is read: memory stays bounded, the journal grows, and traffic stalls before the disk is full.

Without a usable snapshot, and with a journal that no longer begins at its first frame, sessions that were open can't be
continued: an event `state-lost` says so, they are closed as `interrupted`, and what goes on is picked up midstream,
where the journal was released: what lies before that is stored. So it is with a new journal in place of the old one.

The wire's stream and each relay's has a recorder of its own, with its own snapshot; they take turns (`streams.py`).
Sessions have the name of their stream as their source, so a lost state closes those of one stream only.

Snapshots are pickles; the data folder belongs to the appliance alone (mode 0700). See `appliance/session/state.py`.
"""

from appliance.record.recorder import Recorder
from appliance.record.recovery import Sink
from appliance.record.service import drain, run

__all__ = ["Recorder", "Sink", "drain", "run"]
