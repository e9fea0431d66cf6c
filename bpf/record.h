/* SPDX-License-Identifier: Apache-2.0
 *
 * Records in the ring: packets, refusals, ends of flows.
 */
#ifndef VERBATIM_RECORD_H
#define VERBATIM_RECORD_H

#include "quota.h"
#include "scratch.h"

#define PIECE 8192		      /* what one step of a long copy moves */
#define REFUSAL_BYTES 128	      /* of a refused packet are kept */
#define RING_RESERVED 16	      /* one part in so many of the ring is kept for packets without payload */
#define BULK_RESERVED 8		      /* and so much from packets with much of it, for small messages beside them */
#define MUCH 1024		      /* payload bytes */
#define RING_CALM 6		      /* refusal records are written while one part in so many is free */

struct refusal_record {
	struct record record;
	__u8 bytes[REFUSAL_BYTES];
};

struct flow_end_record {
	struct record record;
	struct flow flow;
};

static __always_inline int has_room(struct scratch *s, __u64 length, __u32 reserved)
{
	return s->used + length + (reserved ? s->ring / reserved : 0) <= s->ring;
}

/* Which part of the ring is not for this packet. Resets, FINs and bare acknowledgements still get through when data does
 * not: nobody would send them again. */
static __always_inline __u32 reserved_from(struct scratch *s)
{
	if (s->record.payload >= MUCH)
		return BULK_RESERVED;
	return s->record.protocol == IPPROTO_TCP && !s->record.payload && !s->related ? 0 : RING_RESERVED;
}

/* Copy packet bytes to the record. The verifier wants lengths that it knows: so pieces of constant length, where the last
 * one overlaps the one before. Nothing is copied beyond the packet, and no space of the ring is wasted. */
static __always_inline int copy_piece(struct __sk_buff *skb, struct bpf_dynptr *slot, __u32 from, __u32 at, __u32 size)
{
	void *to = bpf_dynptr_data(slot, sizeof(struct record) + at, size);

	return !to || bpf_skb_load_bytes(skb, from + at, to, size);
}

/* The record's header and the first piece. */
static __always_inline int copy_first(struct __sk_buff *skb, struct scratch *s, struct bpf_dynptr *slot, __u32 size)
{
	struct record *record = bpf_dynptr_data(slot, 0, sizeof(*record) + size);

	if (!record)
		return -1;
	*record = s->record;
	return bpf_skb_load_bytes(skb, s->packet, record + 1, size);
}

static __always_inline int copy_packet(struct __sk_buff *skb, struct scratch *s, struct bpf_dynptr *slot)
{
	__u32 length = s->record.length, from = s->packet;

	if (length >= PIECE) {
		if (copy_first(skb, s, slot, PIECE))
			return -1;
#pragma clang loop unroll(disable)
		for (__u32 i = 1; i < PACKET_BYTES_MAX / PIECE; i++) {
			__u32 at = i * PIECE;

			if (at + PIECE > length)
				break;
			if (copy_piece(skb, slot, from, at, PIECE))
				return -1;
		}
		return copy_piece(skb, slot, from, length - PIECE, PIECE);
	}
#define TRY(SIZE)                                                                                                      \
	if (length >= (SIZE))                                                                                          \
	return copy_first(skb, s, slot, SIZE) || copy_piece(skb, slot, from, length - (SIZE), SIZE)
	TRY(4096);
	TRY(2048);
	if (length <= 2 * 768) /* what a usual link takes at once */
		TRY(768);
	TRY(1024);
	TRY(512);
	TRY(256);
	TRY(128);
	TRY(64);
	TRY(32);
	TRY(16);
#undef TRY
	return -1; /* shorter than an IP header: cannot be */
}

static __always_inline int record_packet(struct __sk_buff *skb, struct scratch *s)
{
	__u32 size = sizeof(struct record) + s->record.length;
	struct bpf_dynptr slot;

	if (!has_room(s, size, reserved_from(s)))
		return REASON_RING_FULL;
	s->record.kind = RECORD_PACKET;
	if (bpf_ringbuf_reserve_dynptr(MAP(MAP_RING), size, 0, &slot)) {
		bpf_ringbuf_discard_dynptr(&slot, 0);
		return REASON_RING_FULL;
	}
	if (copy_packet(skb, s, &slot)) {
		bpf_ringbuf_discard_dynptr(&slot, 0);
		return REASON_MALFORMED;
	}
	bpf_ringbuf_submit_dynptr(&slot, 0);
	return REASON_NONE;
}

/* What a name server upstream said, for user space to learn the addresses of hosts from. Without room nothing is learnt. */
static __always_inline void copy_answer(struct __sk_buff *skb, struct scratch *s)
{
	__u64 length = s->record.payload;
	struct answer *slot;

	if (!length || length > ANSWER_BYTES)
		return;
	slot = bpf_ringbuf_reserve(MAP(MAP_ANSWERS), sizeof(*slot), 0);
	if (!slot)
		return;
	slot->record = s->record;
	slot->record.length = 0;
	length -= 1;
	asm volatile("" : "+r"(length));
	if (length < ANSWER_BYTES) {
		length += 1;
		if (!bpf_skb_load_bytes(skb, s->packet + s->record.header, slot->message, length))
			slot->record.length = length;
	}
	bpf_ringbuf_submit(slot, 0);
}

/* The flow's last word. Without room it stays unreported, and user space says it when it sweeps the flows. */
static __always_inline int report_end(struct scratch *s, struct flow *flow)
{
	struct flow_end_record *slot = bpf_ringbuf_reserve(MAP(MAP_RING), sizeof(*slot), 0);
	struct record *record;

	if (!slot) {
		bump(COUNTER_UNREPORTED, 1);
		return REASON_RING_FULL;
	}
	flow->reported = 1;
	record = &slot->record;
	__builtin_memset(record, 0, sizeof(*record));
	record->version = WIRE_ABI;
	record->kind = RECORD_FLOW_END;
	record->lane = flow->lane;
	record->family = s->flow_key.family;
	record->protocol = s->flow_key.protocol;
	record->flags = flow->flags;
	record->ifindex = s->record.ifindex;
	record->length = sizeof(*flow);
	record->time = s->record.time;
	record->lease = flow->lease;
	record->flow = flow->start;
	__builtin_memcpy(record->source, s->flow_key.source, 16);
	__builtin_memcpy(record->destination, s->flow_key.destination, 16);
	record->source_port = s->flow_key.source_port;
	record->destination_port = s->flow_key.destination_port;
	slot->flow = *flow;
	bpf_ringbuf_submit(slot, 0);
	return REASON_NONE;
}

/* The first bytes of a refused packet, as many as there are. */
static __always_inline void record_refusal(struct __sk_buff *skb, struct scratch *s, __u64 count)
{
	__u32 whole = skb->len - s->packet;
	struct refusal_record *slot;
	__u64 length;

	slot = bpf_ringbuf_reserve(MAP(MAP_RING), sizeof(*slot), 0);
	if (!slot)
		return;
	if (s->record.length && s->record.length < whole)
		whole = s->record.length;
	length = whole > REFUSAL_BYTES ? REFUSAL_BYTES : whole;
	if (length < whole)
		s->record.flags |= RECORD_F_CUT;
	s->record.kind = RECORD_REFUSAL;
	s->record.count = count;
	__builtin_memset(slot->bytes, 0, sizeof(slot->bytes));
	s->record.length = length;
	length -= 1;
	asm volatile("" : "+r"(length));
	if (length < REFUSAL_BYTES) {
		length += 1;
		if (bpf_skb_load_bytes(skb, s->packet, slot->bytes, length))
			s->record.length = 0;
	} else {
		s->record.length = 0;
	}
	slot->record = s->record;
	bpf_ringbuf_submit(slot, 0);
	s->refusal.recorded = s->record.time;
	s->refusal.count = 0;
}

/* At most one record per source, reason and interval, and refusal_rate in all; it says how many packets there were since
 * the last one. 0: the packet is one of too many sources to tell of, and is only counted. */
static __always_inline int report_refusal(struct __sk_buff *skb, struct scratch *s, __u32 reason, __u64 interval)
{
	struct refusal *known;
	int due;

	__builtin_memcpy(s->refusal_key.source, s->record.source, 16);
	s->refusal_key.reason = reason;
	known = bpf_map_lookup_elem(MAP(MAP_REFUSALS), &s->refusal_key);
	s->refusal.recorded = known ? known->recorded : 0;
	s->refusal.count = known ? known->count + 1 : 1;
	due = (!known || !known->recorded || s->record.time - known->recorded >= interval) && take_budget(s);
	if (!known && !due) {
		bump(COUNTER_UNTOLD + reason, 1);
		return 0;
	}
	if (due && has_room(s, sizeof(struct refusal_record), RING_CALM))
		record_refusal(skb, s, s->refusal.count);
	if (known) {
		known->recorded = s->refusal.recorded;
		known->count = s->refusal.count;
	} else {
		bpf_map_update_elem(MAP(MAP_REFUSALS), &s->refusal_key, &s->refusal, BPF_ANY);
	}
	return 1;
}

#endif
