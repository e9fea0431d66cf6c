/* SPDX-License-Identifier: Apache-2.0
 *
 * The books of a flow: what each side sent and the other acknowledged, and when it is over.
 */
#ifndef VERBATIM_TRACK_H
#define VERBATIM_TRACK_H

#include "record.h"

/* A reset counts when its receiver would take it (RFC 5961): else a forged one would end a flow in the books only. */
static __always_inline int is_reset(struct scratch *s, struct side_state *mine)
{
	__u32 seq = s->record.seq;

	if (!(s->record.tcp_flags & TCP_RST))
		return 0;
	if ((mine->flags & (SIDE_F_SEEN | SIDE_F_ACKED)) != (SIDE_F_SEEN | SIDE_F_ACKED))
		return 1;
	return (__s32)(seq - mine->acked) >= 0 && (__s32)(mine->next - seq) >= 0;
}

static __always_inline int is_closed(struct side_state *side)
{
	return side->flags & SIDE_F_FIN && side->flags & SIDE_F_ACKED && (__s32)(side->acked - side->next) >= 0;
}

/* Sequence numbers of one segment. Of a side, .flags is written by packets of both directions, which may be on two CPUs:
 * so only when a bit is new, and the packets that set them follow one another causally. Returns enum flow_end. */
static __always_inline __u8 track(struct scratch *s, struct side_state *mine, struct side_state *other)
{
	struct record *record = &s->record;
	__u8 flags = record->tcp_flags, seen = 0;
	__u32 next = record->seq + record->payload + !!(flags & TCP_SYN) + !!(flags & TCP_FIN);

	if (flags & TCP_ACK) {
		if (!(other->flags & SIDE_F_ACKED)) {
			other->acked = record->ack;
			other->flags |= SIDE_F_ACKED;
		} else if ((__s32)(record->ack - other->acked) > 0) {
			other->acked = record->ack;
		}
	}
	if (flags & TCP_RST) { /* its sequence number may be made up */
		if (!is_reset(s, mine))
			return FLOW_LIVE;
		mine->flags |= SIDE_F_RST;
		return FLOW_RST;
	}
	if (!(mine->flags & SIDE_F_SEEN)) {
		mine->isn = record->seq;
		mine->next = next;
		seen |= SIDE_F_SEEN;
	} else if ((__s32)(next - mine->next) > 0) {
		mine->next = next;
	}
	if (flags & TCP_SYN) {
		mine->scale = s->scale;
		seen |= SIDE_F_SYN;
	}
	if (flags & TCP_FIN)
		seen |= SIDE_F_FIN;
	if (seen & ~mine->flags)
		mine->flags |= seen;
	return is_closed(mine) && is_closed(other) ? FLOW_FIN : FLOW_LIVE;
}

/* A packet of one side. Returns enum flow_end. */
static __always_inline __u8 count_packet(struct scratch *s, struct side_state *mine, struct side_state *other)
{
	__sync_fetch_and_add(&mine->packets, 1);
	if (s->record.payload)
		__sync_fetch_and_add(&mine->bytes, s->record.payload);
	return s->record.protocol == IPPROTO_TCP ? track(s, mine, other) : FLOW_LIVE;
}

/* Count a packet that is in the ring, or that a relay gets or sends. ICMP errors about the flow are none of its packets. */
static __always_inline void count(struct scratch *s, struct flow *flow)
{
	__u8 side = s->record.side & 1, end;

	flow->last = s->record.time;
	if (s->related)
		return;
	end = count_packet(s, &flow->sides[side], &flow->sides[side ^ 1]);
	if (end != FLOW_LIVE && flow->end == FLOW_LIVE) {
		flow->end = end;
		report_end(s, flow);
	}
}

/* The same for a relay's connection to a server. Nobody is told of its end: the relay knows it. */
static __always_inline void count_leg(struct scratch *s, struct leg *leg, __u8 side)
{
	leg->last = s->record.time;
	if (!leg->start)
		leg->start = s->record.time;
	if (!s->related)
		count_packet(s, &leg->sides[side & 1], &leg->sides[(side & 1) ^ 1]);
}

#endif
