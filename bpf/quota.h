/* SPDX-License-Identifier: Apache-2.0
 *
 * Nobody takes everything: how many flows, how much of the ring and how many refusal records one agent may have.
 *
 * Flows and ring are shared by dynamic thresholds (Choudhury and Hahne, 1998): an owner may hold as much as is still
 * free, or a multiple of it. So whoever is alone has much, and there is room for a newcomer. The last part of the table
 * of flows is for owners that have few, since flows, unlike packets, stay when the threshold falls.
 *
 * Of an owner's flows the program counts those that it opens, user space those that it takes out of the map; neither
 * writes the other's number, so that none gets lost between them.
 */
#ifndef VERBATIM_QUOTA_H
#define VERBATIM_QUOTA_H

#include "scratch.h"

#define SECOND 1000000000ull
#define FLOWS_LAST 8   /* the last part in so many of the table is for owners that have few flows: */
#define FLOWS_FEW 2048 /* one part in so many of it, but one in any case */
#define RING_LONELY 4 /* below one part in so many of the ring nobody is asked how much of it is his */
#define RING_GREED 4  /* times what is free: as much of the ring may be filled by one owner */

static __always_inline void set_owner(struct scratch *s, __u64 lease)
{
	__u64 *name = (__u64 *)s->owner.name;

	if (lease) {
		name[0] = lease;
		name[1] = ~0ull;
		return;
	}
	__builtin_memcpy(s->owner.name, s->flow_key.source, 16);
	if (s->flow_key.family == 4)
		s->owner.name[15] = 0;
	else
		name[1] = 0;
}

static __always_inline void set_everybody(struct scratch *s)
{
	__builtin_memset(&s->owner, 0, sizeof(s->owner));
}

/* Flows of .owner in the map; a little less than there are while user space starts an owner's books anew. */
static __always_inline __s64 flows_held(struct scratch *s)
{
	struct quota *quota = bpf_map_lookup_elem(MAP(MAP_QUOTAS), &s->owner);
	__u64 *released;
	__s64 held;

	if (!quota)
		return 0;
	released = bpf_map_lookup_elem(MAP(MAP_RELEASED), &s->owner);
	held = quota->opened - (released ? *released : 0);
	return held > 0 ? held : 0;
}

/* May .owner of this lease have one flow more? */
static __always_inline int may_hold(struct scratch *s, __u64 lease)
{
	struct settings *settings;
	__u32 zero = 0;
	__s64 room, few;

	settings = bpf_map_lookup_elem(MAP(MAP_SETTINGS), &zero);
	if (!settings)
		return 0;
	set_everybody(s);
	room = settings->max_flows - flows_held(s);
	few = settings->max_flows / FLOWS_FEW;
	if (room <= settings->max_flows / FLOWS_LAST)
		room = few ? few : 1;
	if (room > settings->max_flows_per_lease)
		room = settings->max_flows_per_lease;
	set_owner(s, lease);
	return flows_held(s) < room;
}

static __always_inline void add_flows(struct scratch *s, __s64 flows)
{
	struct quota *quota = bpf_map_lookup_elem(MAP(MAP_QUOTAS), &s->owner);

	if (!quota) {
		__builtin_memset(&s->quota, 0, sizeof(s->quota));
		bpf_map_update_elem(MAP(MAP_QUOTAS), &s->owner, &s->quota, BPF_NOEXIST);
		quota = bpf_map_lookup_elem(MAP(MAP_QUOTAS), &s->owner);
	}
	if (quota)
		__sync_fetch_and_add(&quota->opened, flows);
}

/* A flow of this lease and of .flow_key came (1) or went (-1). */
static __always_inline void account_flow(struct scratch *s, __u64 lease, __s64 flows)
{
	set_everybody(s);
	add_flows(s, flows);
	set_owner(s, lease);
	add_flows(s, flows);
}

/* Would the packet give its owner more of the ring than is fair? If not it is counted as the owner's.
 * What an owner has in the ring is known by two counts: once the reader has passed .mark, all from before it is gone,
 * .since becomes .before, and a new count begins. Two CPUs at it at once may lose a few packets of a count. */
static __always_inline int exceeds_share(struct scratch *s, __u64 lease)
{
	__u64 size = s->ring, used = s->used, length = s->record.length + sizeof(struct record), start, end;
	struct quota *quota;

	if (used < size / RING_LONELY)
		return 0;
	start = bpf_ringbuf_query(MAP(MAP_RING), BPF_RB_CONS_POS);
	end = start + used;
	set_owner(s, lease);
	quota = bpf_map_lookup_elem(MAP(MAP_QUOTAS), &s->owner);
	if (!quota)
		return 0;
	if (start >= quota->mark) {
		quota->before = start - quota->mark < size ? quota->since : 0;
		quota->since = 0;
		quota->mark = end;
	}
	if (used > size / 2 && quota->before + quota->since + length > RING_GREED * (size - used))
		return 1;
	quota->since += length;
	return 0;
}

/* Takes one refusal record of this second; 0: there are none left. */
static __always_inline int take_budget(struct scratch *s)
{
	struct settings *settings;
	struct budget *budget;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(MAP(MAP_SETTINGS), &zero);
	budget = bpf_map_lookup_elem(MAP(MAP_BUDGET), &zero);
	if (!settings || !budget)
		return 0;
	if (s->record.time - budget->second >= SECOND) {
		budget->second = s->record.time;
		budget->used = 0;
	}
	if (budget->used >= settings->refusal_rate)
		return 0;
	__sync_fetch_and_add(&budget->used, 1);
	return 1;
}

#endif
