/* SPDX-License-Identifier: Apache-2.0
 *
 * The gateway's own: what comes for its addresses, and the connections that relays make to servers (legs).
 */
#ifndef VERBATIM_LEG_H
#define VERBATIM_LEG_H

#include "source.h"
#include "track.h"
#include "transport.h"

/* The leg that the packet in hand belongs to: it comes from the leg's server, or is an ICMP error about what the relay
 * sent. */
static __always_inline struct leg *find_leg(struct scratch *s)
{
	if (s->key.protocol != IPPROTO_TCP)
		return 0;
	if (s->related)
		s->leg_key = s->key;
	else
		reverse(&s->leg_key, &s->key);
	return bpf_map_lookup_elem(MAP(MAP_LEGS), &s->leg_key);
}

/* A server that is an agent itself needs a lease of its own, as in the tap lane; else it could answer for any server. */
static __always_inline int admit_leg(struct __sk_buff *skb, struct scratch *s, struct leg *leg)
{
	if (s->role != ROLE_AGENT || s->related)
		return REASON_NONE;
	if (leg->flags & LEG_F_UNBOUND)
		return is_spoofed(skb, s) ? REASON_SPOOFED : REASON_NONE;
	return is_leased(skb, s) ? REASON_NONE : REASON_IMPOSTOR;
}

static __always_inline int is_among(const __u16 *ports, __u16 port)
{
#pragma unroll
	for (int i = 0; i < PORTS_MAX; i++)
		if (port && ports[i] == port)
			return 1;
	return 0;
}

/* A TCP segment for one of the gateway's own addresses. Legs are counted. Of the gateway itself agents reach the API, the
 * proxies of relays, and what IP needs; segments but the first of a connection are the stack's to judge, since the gateway
 * may have begun it. REASON_NONE: for a proxy, which is asked about like any other flow. */
static __always_inline int admit_local_tcp(struct __sk_buff *skb, struct scratch *s, struct settings *settings)
{
	int malformed = s->transport + sizeof(struct tcphdr) > s->end, reason;
	struct record *record = &s->record;
	struct leg *leg;

	begin_key(s);
	if (malformed || parse_tcp(skb, s))
		return s->role == ROLE_AGENT ? REASON_MALFORMED : OUT_LOCAL;
	record->source_port = s->key.source_port;
	record->destination_port = s->key.destination_port;
	if (s->role == ROLE_AGENT && is_among(settings->proxies, record->destination_port)) {
		s->proxied = 1;
		return REASON_NONE;
	}
	leg = find_leg(s);
	if (leg) {
		reason = admit_leg(skb, s, leg);
		if (reason)
			return reason;
		count_leg(s, leg, SIDE_SERVER);
		return OUT_LOCAL;
	}
	if (s->role != ROLE_AGENT || (record->tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return OUT_LOCAL;
	return is_among(settings->ports, record->destination_port) ? OUT_LOCAL : REASON_GATEWAY;
}

/* What is not for us to forward. The interlock drops what agents may not reach as well; here it is told who tries. */
static __always_inline int admit_local(struct __sk_buff *skb, struct scratch *s, struct settings *settings)
{
	struct record *record = &s->record;
	__be16 *ports = (__be16 *)s->bytes;
	__u8 protocol = record->protocol;

	if (misleads(skb, s))
		return REASON_SPOOFED;
	if (!s->local)
		return OUT_LOCAL;
	if (protocol == IPPROTO_TCP && !(record->flags & RECORD_F_FRAGMENT))
		return admit_local_tcp(skb, s, settings);
	if (s->role != ROLE_AGENT)
		return OUT_LOCAL;
	if (record->flags & RECORD_F_FRAGMENT)
		return REASON_FRAGMENT;
	if (protocol == (record->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return OUT_LOCAL;
	if (protocol != IPPROTO_UDP)
		return REASON_GATEWAY;
	if (s->transport + sizeof(struct udphdr) > s->end || LOAD(skb, s->transport, s, sizeof(struct udphdr)))
		return REASON_MALFORMED;
	record->source_port = bpf_ntohs(ports[0]);
	record->destination_port = bpf_ntohs(ports[1]);
	return REASON_GATEWAY;
}

#endif
