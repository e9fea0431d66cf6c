/* SPDX-License-Identifier: Apache-2.0
 *
 * What the gateway itself sends: segments of relays, to agents (in a server's name) and to servers. They are counted, so
 * that the books of both connections have both sides; and what a relay sends to an agent whose lease is over is dropped.
 */
#ifndef VERBATIM_OWN_H
#define VERBATIM_OWN_H

#include "track.h"
#include "transport.h"

#define IPPROTO_HOPS 0 /* hop-by-hop options: BIG TCP has its length in one */

/* Fills record and key. 0: not TCP. The stack made the packet, so little is to be checked. */
static __always_inline int parse_own(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	struct ipv6hdr *ip6 = (struct ipv6hdr *)s->bytes;
	struct iphdr *ip = (struct iphdr *)s->bytes;

	s->packet = ETH_HLEN;
	s->end = skb->len;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (LOAD(skb, s->packet, s, sizeof(*ip)) || ip->protocol != IPPROTO_TCP || ip->frag_off & bpf_htons(0x3fff))
			return 0;
		record->family = 4;
		map_ipv4(record->source, ip->saddr);
		map_ipv4(record->destination, ip->daddr);
		s->transport = s->packet + (ip->ihl & 15) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (LOAD(skb, s->packet, s, sizeof(*ip6)))
			return 0;
		record->family = 6;
		__builtin_memcpy(record->source, &ip6->saddr, 16);
		__builtin_memcpy(record->destination, &ip6->daddr, 16);
		s->transport = s->packet + sizeof(*ip6);
		if (ip6->nexthdr == IPPROTO_HOPS) {
			if (LOAD(skb, s->transport, s, 8) || s->bytes[0] != IPPROTO_TCP)
				return 0;
			s->transport += (s->bytes[1] + 1) * 8;
		} else if (ip6->nexthdr != IPPROTO_TCP) {
			return 0;
		}
	} else {
		return 0;
	}
	record->protocol = IPPROTO_TCP;
	begin_key(s);
	return !parse_tcp(skb, s);
}

/* Is the lease of the flow over? */
static __always_inline int is_cut(struct scratch *s, struct flow *flow)
{
	struct lease *lease;

	if (!flow->lease)
		return 0;
	lease = bpf_map_lookup_elem(MAP(MAP_LEASES), s->flow_key.source);
	return !lease || lease->id != flow->lease || lease->expires <= s->record.time;
}

static __always_inline int own(struct __sk_buff *skb)
{
	struct scratch *s;
	struct flow *flow;
	struct leg *leg;
	__u32 zero = 0;

	s = bpf_map_lookup_elem(MAP(MAP_SCRATCH), &zero);
	if (!s)
		return TC_ACT_UNSPEC;
	__builtin_memset(&s->record, 0, sizeof(s->record));
	__builtin_memset(&s->key, 0, sizeof(s->key));
	s->related = 0;
	s->scale = 0;
	s->record.time = bpf_ktime_get_boot_ns();
	s->record.ifindex = skb->ifindex;
	if (!parse_own(skb, s))
		return TC_ACT_UNSPEC;
	reverse(&s->flow_key, &s->key);
	flow = bpf_map_lookup_elem(MAP(MAP_FLOWS), &s->flow_key);
	if (flow && flow->lane == LANE_RELAY) {
		if (is_cut(s, flow)) /* a reset says so to the agent, and is no part of what the flow was */
			return s->record.tcp_flags & TCP_RST ? TC_ACT_UNSPEC : TC_ACT_SHOT;
		s->record.side = SIDE_SERVER;
		count(s, flow);
		return TC_ACT_UNSPEC;
	}
	leg = bpf_map_lookup_elem(MAP(MAP_LEGS), &s->key);
	if (leg)
		count_leg(s, leg, SIDE_CLIENT);
	return TC_ACT_UNSPEC;
}

#endif
