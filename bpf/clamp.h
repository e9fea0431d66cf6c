/* SPDX-License-Identifier: Apache-2.0
 *
 * Back-pressure: while the ring fills, the receive windows that pass are lowered, so that senders wait instead of losing
 * packets. Refusal stays behind it, for those who do not listen.
 *
 * Above settings.clamp, and until a second after, each acknowledgement opens no more than its flow's share of what is
 * left up to the level at which windows are held: there, a flow that sends much gets no further bytes. A calm ring cuts
 * only what it could not take. A right edge that was forwarded is never taken back (RFC 9293 section 3.8.6), a window
 * is never raised, and the window of a SYN, whose scale is not yet agreed upon, stays. The packet is changed after it was
 * recorded: the record has it as it arrived.
 *
 * A sender whose window is shut hears nothing more from its receiver, who believes it open. So the last acknowledgement
 * is kept in map held, and user space sends it again, with room for SEGMENTS_MIN segments, when the ring has drained.
 * Without user space the sender's own probes get the answer that opens it (RFC 9293 section 3.8.6.1).
 */
#ifndef VERBATIM_CLAMP_H
#define VERBATIM_CLAMP_H

#include "record.h"

#define TICK 28 /* log2 of the nanoseconds over which what a side sends is added up: 268 ms */
#define CALM 4 /* ticks after which a ring that drained counts as empty: until then, what drains may fill again at once */
#define START 65536 /* bytes that a flow may begin with in any case */
#define FLIGHTS 4 /* times what is on its way: a window that a calm ring leaves in any case */
#define FLYING_MAX (1 << 28) /* bytes: windows are up to 2^30 (RFC 7323 section 2.3) */
#define BULK 16384 /* bytes in a tick that make a side count as one of those who share */
#define FADING 15 /* of 16 sides that stop, so many still count in the next tick: who pauses comes back */
#define SEGMENTS_MIN 4 /* what a window that is not held opens at least, so that acknowledgements keep coming */
#define BRINK_PART 3 /* with less than this part of the ring free every window is held */
#define HOLD_PART 3 /* windows are held when so much of the ring above settings.clamp is used: one part in so many */

static __always_inline int is_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline __u32 later(__u32 a, __u32 b)
{
	return is_after(a, b) ? a : b;
}

/* How many sides send much, now or a moment ago. */
static __always_inline __u32 sharers(struct pressure *pressure)
{
	__u32 most = pressure->now > pressure->before ? pressure->now : pressure->before;

	return most ? most : 1;
}

/* Two processors that turn the tick at once may both do so: it is an estimate. */
static __always_inline void count_sharer(struct pressure *pressure, __u32 tick)
{
	if (pressure->tick != tick) {
		pressure->before = pressure->before * FADING / (FADING + 1);
		if (pressure->before < pressure->now)
			pressure->before = pressure->now;
		pressure->now = 0;
		pressure->tick = tick;
	}
	__sync_fetch_and_add(&pressure->now, 1);
}

/* Add up what a side sends. */
static __always_inline void weigh(struct scratch *s, struct window *mine)
{
	__u32 tick = s->record.time >> TICK, zero = 0;
	struct pressure *pressure;
	__u32 sent;

	if (mine->tick != tick) {
		mine->before = tick - mine->tick == 1 ? mine->recent : 0;
		mine->recent = 0;
		mine->tick = tick;
	}
	sent = mine->recent;
	mine->recent = sent + s->record.payload;
	if (sent > BULK || mine->recent <= BULK)
		return;
	pressure = bpf_map_lookup_elem(MAP(MAP_PRESSURE), &zero);
	if (pressure)
		count_sharer(pressure, tick);
}

/* What four segments of the other side's are at least. Each side announces what it takes; the smaller bounds both. */
static __always_inline __u32 least(struct tracked *tracked)
{
	__u32 mine = tracked->windows[0].mss, other = tracked->windows[1].mss;

	return SEGMENTS_MIN * (mine < other ? mine : other);
}

/* Fill at which windows are held. A ring has less than 2^32 bytes: 32 bits, which older processors divide faster. */
static __always_inline __u32 hold_level(struct settings *settings)
{
	return settings->clamp + (settings->ring - settings->clamp) / HOLD_PART;
}

/* How many bytes beyond the acknowledgement a side may be offered while the ring is calm: what the ring could take, so that
 * nobody overruns it the moment that its reader stops, but not less than the flow makes use of. */
static __always_inline __u32 calm_allowance(struct scratch *s, struct settings *settings, struct pressure *pressure,
					    __u32 flying)
{
	__u32 share = (hold_level(settings) - s->used) / sharers(pressure);

	if (share < START)
		share = START;
	if (flying > FLYING_MAX)
		flying = FLYING_MAX;
	return share > FLIGHTS * flying ? share : FLIGHTS * flying;
}

/* The same under pressure; 0: none, the window is held. */
static __always_inline __u32 allowance(struct scratch *s, struct settings *settings, struct pressure *pressure,
				       struct window *sender, __u32 floor)
{
	__u32 ring = settings->ring, used = s->used, hold = hold_level(settings);
	__u32 brink = ring - ring / BRINK_PART, tick = s->record.time >> TICK, age;
	__u64 share, usual;

	if (used >= brink)
		return 0;
	age = tick - sender->tick;
	usual = age > 1 ? 0 : age ? sender->recent : sender->recent + sender->before;
	if (used >= hold)
		return usual > (brink - used) / sharers(pressure) ? 0 : floor;
	share = (hold - used) / sharers(pressure);
	if (share > 2 * usual + START) /* who begins again after a pause must not take everybody's part */
		share = 2 * usual + START;
	return share > floor ? share : floor;
}

/* Keep the acknowledgement for user space to send again. No room, or headers that are too long: not 0. */
static __always_inline int keep(struct __sk_buff *skb, struct scratch *s, __u16 window)
{
	struct held *held = &s->held;
	__u64 length = s->record.header;
	int fin = !!(s->record.tcp_flags & TCP_FIN);

	held->seq = s->record.seq + s->record.payload + fin;
	held->window = window;
	held->transport = s->transport - s->packet;
	held->length = length;
	length -= 1;
	asm volatile("" : "+r"(length));
	if (length >= HELD_BYTES)
		return -1;
	length += 1;
	if (bpf_skb_load_bytes(skb, s->packet, held->header, length))
		return -1;
	return bpf_map_update_elem(MAP(MAP_HELD), &s->key, held, BPF_ANY);
}

static __always_inline __u32 rounded_up(__u32 bytes, __u8 scale)
{
	return (bytes + (1U << scale) - 1) >> scale;
}

/* Lower the window of the packet to `field`. */
static __always_inline int write_window(struct __sk_buff *skb, struct scratch *s, __u16 field)
{
	__be16 from = bpf_htons(s->record.window), to = bpf_htons(field);

	if (bpf_l4_csum_replace(skb, s->transport + offsetof(struct tcphdr, check), from, to, 2))
		return -1;
	return bpf_skb_store_bytes(skb, s->transport + offsetof(struct tcphdr, window), &to, sizeof(to), 0);
}

/* Nothing beyond what was forwarded already. When that is nearly used up, the acknowledgement is kept. */
static __always_inline __u32 hold(struct __sk_buff *skb, struct scratch *s, struct pressure *pressure,
				  struct window *mine, __u32 floor, __u8 scale)
{
	__u32 ack = s->record.ack, field = rounded_up(floor, scale);

	if (mine->flags & WINDOW_F_HELD && !bpf_map_lookup_elem(MAP(MAP_HELD), &s->key)) {
		mine->edge = later(mine->edge, mine->promised); /* user space has sent it */
		mine->flags &= ~WINDOW_F_HELD;
	}
	if (is_after(mine->edge, ack + floor))
		return 0;
	if (field > s->record.window)
		field = s->record.window;
	if (keep(skb, s, field))
		return floor;
	__sync_fetch_and_add(&pressure->held, 1); /* each time: user space may just have taken the one before */
	mine->promised = later(mine->edge, ack + (field << scale));
	if (!(mine->flags & WINDOW_F_HELD)) {
		mine->flags |= WINDOW_F_HELD;
		bump(COUNTER_HELD, 1);
	}
	return 0;
}

/* Is the ring too full, or was it a moment ago? */
static __always_inline int is_pressed(struct scratch *s, struct settings *settings, struct pressure *pressure)
{
	__u32 tick = s->record.time >> TICK;

	if (s->used <= settings->clamp)
		return tick - pressure->pressed <= CALM;
	if (pressure->pressed != tick)
		pressure->pressed = tick;
	return 1;
}

static __always_inline void clamp_window(struct __sk_buff *skb, struct scratch *s, struct settings *settings,
					 struct tracked *tracked, __u8 side, __u8 scale)
{
	struct window *mine = &tracked->windows[side & 1], *other = &tracked->windows[(side & 1) ^ 1];
	__u32 ack = s->record.ack, wanted = ack + ((__u32)s->record.window << scale);
	__u32 floor = least(tracked), allowed, target, field, zero = 0;
	struct pressure *pressure = bpf_map_lookup_elem(MAP(MAP_PRESSURE), &zero);

	if (!pressure || !is_after(wanted, mine->edge)) /* no more than what was forwarded already */
		return;
	if (is_pressed(s, settings, pressure))
		allowed = allowance(s, settings, pressure, other, floor);
	else
		allowed = calm_allowance(s, settings, pressure, tracked->flow.sides[(side & 1) ^ 1].next - ack);
	if (!allowed)
		allowed = hold(skb, s, pressure, mine, floor, scale);
	else if (mine->flags & WINDOW_F_HELD) {
		mine->edge = later(mine->edge, mine->promised);
		mine->flags &= ~WINDOW_F_HELD;
		bpf_map_delete_elem(MAP(MAP_HELD), &s->key);
	}
	target = later(mine->edge, ack + allowed);
	field = rounded_up(target - ack, scale);
	if (is_after(wanted, target) && field < s->record.window && !write_window(skb, s, field)) {
		wanted = ack + (field << scale);
		bump(COUNTER_CLAMPED, 1);
	}
	mine->edge = later(mine->edge, wanted);
}

/* What a SYN says of windows; its own is not scaled. Nothing is left of a former connection. */
static __always_inline void begin_window(struct scratch *s, struct window *mine)
{
	__u8 acknowledges = s->record.tcp_flags & TCP_ACK;

	bpf_map_delete_elem(MAP(MAP_HELD), &s->key);
	mine->mss = s->mss;
	mine->flags = (mine->flags & ~WINDOW_F_SCALED) | (s->scaled ? WINDOW_F_SCALED : 0);
	if (mine->flags & WINDOW_F_EDGE)
		return;
	mine->edge = s->record.window + (acknowledges ? s->record.ack : 0);
	if (acknowledges)
		mine->flags |= WINDOW_F_EDGE;
}

/* The window of a TCP packet that is recorded and will be forwarded. */
static __always_inline void mind_window(struct __sk_buff *skb, struct scratch *s, struct settings *settings,
					struct flow *flow)
{
	struct record *record = &s->record;
	struct tracked *tracked = (struct tracked *)flow;
	__u8 side = record->side & 1, scale = 0;
	struct window *mine = &tracked->windows[side], *other = &tracked->windows[side ^ 1];

	if (record->payload)
		weigh(s, mine);
	if (record->tcp_flags & TCP_SYN) {
		begin_window(s, mine);
		return;
	}
	if (!mine->mss || !other->mss) /* a SYN was not seen: the scale is unknown */
		return;
	if ((record->tcp_flags & (TCP_ACK | TCP_RST)) != TCP_ACK || is_after(record->ack, flow->sides[side ^ 1].next))
		return;
	if (mine->flags & other->flags & WINDOW_F_SCALED)
		scale = flow->sides[side].scale;
	if (!(mine->flags & WINDOW_F_EDGE)) {
		mine->flags |= WINDOW_F_EDGE;
		mine->edge += record->ack;
	}
	if (settings->clamp)
		clamp_window(skb, s, settings, tracked, side, scale);
	else
		mine->edge = later(mine->edge, record->ack + ((__u32)record->window << scale));
}

#endif
