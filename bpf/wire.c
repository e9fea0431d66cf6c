// SPDX-License-Identifier: Apache-2.0
/*
 * The recorder's datapath: one TC ingress program on every agent-facing and upstream-facing interface.
 *
 *     parse -> flow -> lease and rule -> record -> count -> lower the window -> mark
 *                                     -> for a relay's socket -> count -> mark
 *
 * Nothing is forwarded before it is in the ring: a packet gets its two marks only after its record is submitted. The
 * interlock (nftables) drops every forwarded packet without the first, the gate (gate.c) every one without the second.
 * Every way out of this program that is not the end of forward() therefore fails closed.
 *
 * Parsing results live in a per-CPU scratch value, not on the stack: there is more than 512 bytes of them, and what the
 * verifier reads back from a map is one unknown number instead of one known constant per path, so the paths through
 * the parser join before the rest of the program is verified. TC ingress runs in softirq and is not re-entered on a CPU.
 *
 * Maps are created by appliance/wire/loader.py and named here by number (enum map), which the loader replaces by file
 * descriptors: so the same instructions load with fresh maps, with pinned ones, and in another machine.
 */
#include "clamp.h"
#include "flow.h"
#include "leg.h"
#include "parse.h"
#include "record.h"
#include "scratch.h"
#include "source.h"
#include "steer.h"
#include "track.h"

static __always_inline int leave(__u32 way)
{
	if (way == OUT_LOCAL) {
		bump(COUNTER_LOCAL, 1);
		return TC_ACT_OK;
	}
	bump(way == OUT_FOREIGN ? COUNTER_FOREIGN : COUNTER_NO_ROLE, 1);
	return TC_ACT_SHOT;
}

/* A packet that gets an answer goes to the stack for it, with its hop limit used up. */
static __always_inline int refuse(struct __sk_buff *skb, struct scratch *s, struct flow *flow, __u32 reason, __u64 interval)
{
	int told;

	bump(reason, 1);
	if (flow) {
		struct side_state *mine = &flow->sides[s->record.side & 1];

		__sync_fetch_and_add(&mine->refused, 1);
		__sync_fetch_and_add(&mine->refused_bytes, s->record.payload);
	}
	s->record.reason = reason;
	told = report_refusal(skb, s, reason, interval);
	/* One of many made-up sources gets no answer: each would have the gateway look for a neighbour. Nor does the stack get
	 * to see what it would complain about (a bad option) to a source elsewhere, quoting it. */
	if (!told || reason <= REASON_LAST_SILENT || misleads(skb, s) || exhaust(skb, s))
		return TC_ACT_SHOT;
	skb->mark = MARK_REFUSED;
	return TC_ACT_OK;
}

static __always_inline int forward(struct __sk_buff *skb, struct scratch *s, struct settings *settings, struct flow *flow)
{
	int reason = record_packet(skb, s);

	if (reason)
		return reason;
	count(s, flow);
	if (s->record.protocol == IPPROTO_TCP && !s->related)
		mind_window(skb, s, settings, flow);
	else if (s->names && s->record.source_port == PORT_DNS && s->role == ROLE_UPSTREAM && !s->related &&
		 s->record.protocol == IPPROTO_UDP && s->record.side == SIDE_SERVER)
		copy_answer(skb, s);
	bump(COUNTER_PACKETS, 1);
	bump(COUNTER_BYTES, s->record.length);
	skb->mark = MARK_RECORDED;
	skb->tc_classid = CLASS_RECORDED;
	return REASON_NONE;
}

static __always_inline void start(struct __sk_buff *skb, struct scratch *s, struct settings *settings)
{
	struct record *record = &s->record;

	skb->mark = 0; /* a mark that came in says nothing */
	__builtin_memset(record, 0, sizeof(*record));
	__builtin_memset(&s->key, 0, sizeof(s->key));
	s->packet = 0;
	s->rule = 0;
	s->rules = settings->rules;
	s->opens = 0;
	s->related = 0;
	s->scale = 0;
	s->scaled = 0;
	s->ring = settings->ring;
	s->used = bpf_ringbuf_query(MAP(MAP_RING), BPF_RB_AVAIL_DATA);
	s->local = 0;
	s->proxied = 0;
	s->names = !!settings->names;
	__builtin_memset(s->link, 0, sizeof(s->link));
	record->version = WIRE_ABI;
	record->ifindex = skb->ifindex;
	record->time = bpf_ktime_get_boot_ns();
	if (skb->gso_size) {
		record->flags = RECORD_F_GSO;
		record->gso_size = skb->gso_size;
		record->gso_segs = skb->gso_segs;
	}
}

int wire(struct __sk_buff *skb)
{
	struct settings *settings;
	struct flow *flow = 0;
	struct scratch *s;
	__u32 zero = 0;
	int reason;

	s = bpf_map_lookup_elem(MAP(MAP_SCRATCH), &zero);
	settings = bpf_map_lookup_elem(MAP(MAP_SETTINGS), &zero);
	if (!s || !settings)
		return TC_ACT_SHOT;
	start(skb, s, settings);
	reason = parse(skb, s);
	if (reason == OUT_LOCAL)
		reason = admit_local(skb, s, settings);
	if (reason >= OUT_LOCAL)
		return leave(reason);
	if (settings->stalled)
		reason = REASON_JOURNAL_FULL;
	if (!reason)
		reason = admit(skb, s, &flow);
	if (reason == OUT_LEG)
		reason = steer_leg(skb, s);
	else if (!reason && flow && s->record.lane == LANE_RELAY)
		reason = relay_packet(skb, s, &flow);
	else if (!reason && flow)
		reason = forward(skb, s, settings, flow);
	else if (!reason)
		reason = REASON_FLOWS_FULL; /* cannot be: what is admitted has a flow */
	return reason ? refuse(skb, s, flow, reason, settings->refusal_interval) : TC_ACT_OK;
}
