/* SPDX-License-Identifier: Apache-2.0
 *
 * May the packet pass? Its flow, the rule for its server, the lease of its client.
 */
#ifndef VERBATIM_FLOW_H
#define VERBATIM_FLOW_H

#include "leg.h"
#include "quota.h"
#include "record.h"
#include "source.h"

#define PORT_QUIC 443
#define PORT_DNS 53

/* The flow of the packet, or 0 and .flow_key as if the packet opened one. Sets record.side. From upstream come servers'
 * packets: so they are looked for first. */
static __always_inline struct flow *find_flow(struct scratch *s)
{
	int reversed = s->role != ROLE_AGENT;
	struct flow *flow = 0;

#pragma unroll
	for (int i = 0; i < 2 && !flow; i++, reversed = !reversed) {
		if (reversed)
			reverse(&s->flow_key, &s->key);
		else
			s->flow_key = s->key;
		flow = bpf_map_lookup_elem(MAP(MAP_FLOWS), &s->flow_key);
		s->record.side = reversed ? SIDE_SERVER : SIDE_CLIENT;
	}
	if (!flow) {
		s->flow_key = s->key;
		s->record.side = SIDE_CLIENT;
	}
	return flow;
}

/* An ICMP error travels against the packet that it is about, and is recorded with the flow's own addresses. */
static __always_inline void turn_round(struct scratch *s)
{
	struct record *record = &s->record;

	record->side ^= 1;
	record->flags |= RECORD_F_RELATED;
	record->protocol = s->key.protocol;
	__builtin_memcpy(record->source, s->key.destination, 16);
	__builtin_memcpy(record->destination, s->key.source, 16);
	record->source_port = s->key.destination_port;
	record->destination_port = s->key.source_port;
}

static __always_inline int is_tcp_syn(struct scratch *s)
{
	return s->record.protocol == IPPROTO_TCP && s->opens && !s->related;
}

/* A client's SYN starts the flow anew when the one that is known is over, or began with another sequence number; so does
 * the SYN of a former server that is an agent itself, once the flow that is over has been reported. */
static __always_inline int starts_anew(struct scratch *s, struct flow *flow)
{
	struct side_state *client = &flow->sides[SIDE_CLIENT];

	if (!is_tcp_syn(s))
		return 0;
	if (s->record.side == SIDE_SERVER)
		return flow->end != FLOW_LIVE && flow->reported && s->role == ROLE_AGENT;
	return flow->end != FLOW_LIVE || (client->flags & SIDE_F_SEEN && client->isn != s->record.seq);
}

/* Does a packet come from where its side of the flow is? Servers may be agents; clients always are. */
static __always_inline int is_misplaced(struct scratch *s, struct flow *flow)
{
	if (s->role == ROLE_AGENT || s->related)
		return REASON_NONE;
	if (s->record.side == SIDE_CLIENT)
		return REASON_NO_FLOW;
	return is_tcp_syn(s) && flow->end != FLOW_LIVE ? REASON_INBOUND : REASON_NONE;
}

/* May a packet without a flow open one? */
static __always_inline int may_open(struct scratch *s)
{
	struct record *record = &s->record;

	if (s->related)
		return REASON_PROTOCOL;
	if (s->role != ROLE_AGENT)
		return s->opens ? REASON_INBOUND : REASON_NO_FLOW;
	if (record->protocol == IPPROTO_TCP) /* else picked up midstream, as after a restart of the gateway */
		return record->tcp_flags & TCP_RST ? REASON_NO_FLOW : REASON_NONE;
	return s->opens ? REASON_NONE : REASON_PROTOCOL;
}

static __always_inline struct rule *look_up_rule(struct scratch *s, __u8 protocol, __be16 port)
{
	struct rule_key *key = &s->rule_key;

	key->prefixlen = (sizeof(*key) - sizeof(key->prefixlen)) * 8;
	key->family = s->flow_key.family;
	key->protocol = protocol;
	key->port = port;
	__builtin_memcpy(key->network, s->flow_key.destination, 16);
	return bpf_map_lookup_elem(MAP(MAP_RULES), key);
}

/* UDP that usually carries other packets: who means it names the port in a rule. A tunnel to another port is recorded
 * as what it is, datagrams that nobody understands. */
static __always_inline int is_tunnel(__u16 port)
{
	switch (port) {
	case 500:   /* IKE */
	case 1194:  /* OpenVPN */
	case 1701:  /* L2TP */
	case 2152:  /* GTP-U */
	case 3544:  /* Teredo */
	case 4500:  /* ESP in UDP */
	case 4754:  /* GRE in UDP */
	case 4789:  /* VXLAN */
	case 6081:  /* Geneve */
	case 6635:  /* MPLS in UDP */
	case 8472:  /* VXLAN, as Linux first had it */
	case 41641: /* Tailscale */
	case 51820: /* WireGuard */
		return 1;
	}
	return 0;
}

/* The rule for the flow's server, and what it says. Sets .rule and record.lane; *unbound: no lease is needed. */
static __always_inline int ask_rules(struct scratch *s, __u8 *unbound)
{
	__u8 protocol = s->flow_key.protocol;
	__u16 port = s->flow_key.destination_port;
	int echo = protocol != IPPROTO_TCP && protocol != IPPROTO_UDP;
	struct rule *best, *rule;
	int exact = 0;

	best = look_up_rule(s, protocol, 0);
	rule = look_up_rule(s, 0, 0);
	if (rule && (!best || rule->prefix > best->prefix) && !(echo && rule->lane != LANE_REFUSE))
		best = rule;
	if (!echo) {
		rule = look_up_rule(s, protocol, bpf_htons(port));
		if (rule && (!best || rule->prefix >= best->prefix)) {
			best = rule;
			exact = 1;
		}
	}
	if (!best && protocol == IPPROTO_UDP && port == PORT_QUIC) /* told as such: people see why clients fall back to TCP */
		return REASON_QUIC;
	if (!best)
		return protocol == IPPROTO_TCP && s->names && s->opens ? REASON_NO_NAME : REASON_NO_RULE;
	s->rule = best->id;
	s->record.lane = best->lane;
	*unbound = best->unbound;
	if (best->lane == LANE_RELAY && protocol != IPPROTO_TCP)
		return protocol == IPPROTO_UDP && port == PORT_QUIC ? REASON_QUIC : REASON_PROTOCOL;
	if (best->lane != LANE_TAP && best->lane != LANE_RELAY)
		return REASON_RULE;
	if (protocol == IPPROTO_UDP && port == PORT_QUIC && !exact)
		return REASON_QUIC;
	if (protocol == IPPROTO_UDP && !exact && is_tunnel(port))
		return REASON_TUNNEL;
	return REASON_NONE;
}

/* The rules are asked once: a flow remembers what they said until they change. In one word, which is written at once. */
static __always_inline int recall_rule(struct scratch *s, struct flow *flow, __u8 *unbound)
{
	__u32 rules = ((struct tracked *)flow)->rules;

	if (!s->rules || (rules & ~1u) != s->rules)
		return 0;
	s->rule = flow->rule;
	s->record.lane = flow->lane;
	*unbound = rules & 1;
	return 1;
}

static __always_inline void remember_rule(struct scratch *s, struct flow *flow, __u8 unbound)
{
	flow->rule = s->rule;
	flow->lane = s->record.lane;
	((struct tracked *)flow)->rules = s->rules | !!unbound;
}

/* Nobody vouches for the source of a packet of an unbound flow but the routes. They are asked once for a client that
 * stays behind its interface, each time for a server among the agents. */
static __always_inline int strays(struct __sk_buff *skb, struct scratch *s, struct flow *flow)
{
	if (s->role != ROLE_AGENT || s->related)
		return 0;
	if (s->record.side == SIDE_CLIENT && ((struct tracked *)flow)->ifindex == skb->ifindex)
		return 0;
	return is_spoofed(skb, s);
}

/* The identity that the packet travels under: asked for each packet, so that expiry and revocation cut live flows. */
static __always_inline int ask_leases(struct __sk_buff *skb, struct scratch *s, struct flow *flow, __u8 unbound)
{
	struct record *record = &s->record;
	struct lease *lease;
	int reason = REASON_NONE;

	if (flow && flow->flags & RECORD_F_UNBOUND && unbound) {
		record->flags |= RECORD_F_UNBOUND;
		return strays(skb, s, flow) ? REASON_SPOOFED : REASON_NONE;
	}
	lease = bpf_map_lookup_elem(MAP(MAP_LEASES), s->flow_key.source);
	if (!lease) {
		reason = REASON_NO_LEASE;
	} else if (lease->ifindex && record->side == SIDE_CLIENT && lease->ifindex != skb->ifindex) {
		return REASON_SPOOFED;
	} else {
		record->lease = lease->id;
		if (lease->expires <= record->time)
			reason = REASON_LEASE_EXPIRED;
		else if (s->role == ROLE_AGENT && record->side == SIDE_CLIENT && !s->related && is_borrowed(s, lease))
			return REASON_SPOOFED;
		else if (flow && flow->lease != lease->id)
			reason = REASON_LEASE_CHANGED;
	}
	if (reason && !flow && unbound) {
		record->lease = 0;
		record->flags |= RECORD_F_UNBOUND;
		return is_spoofed(skb, s) ? REASON_SPOOFED : REASON_NONE;
	}
	return reason;
}

/* Who answers from behind an agent-facing interface is an agent, and needs a lease of its own there: else it could answer
 * in the name of any server. */
static __always_inline int is_impostor(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;

	if (s->role != ROLE_AGENT || record->side == SIDE_CLIENT || s->related || record->flags & RECORD_F_UNBOUND)
		return 0;
	return !is_leased(skb, s);
}

/* Take leave of the flow that a SYN replaces. */
static __always_inline int close_former(struct scratch *s, struct flow *former)
{
	if (former->end == FLOW_LIVE)
		former->end = FLOW_IDLE; /* its peers gave it up without a word that we saw */
	return former->reported ? REASON_NONE : report_end(s, former);
}

/* Its first packet is counted when it is recorded. 0: the map is full. */
static __always_inline struct flow *open_flow(struct scratch *s, struct flow *former, __u8 unbound)
{
	struct flow *fresh = &s->fresh.flow;
	__u64 payer = former ? former->lease : 0;

	__builtin_memset(fresh, 0, sizeof(*fresh));
	fresh->start = s->record.time;
	fresh->last = s->record.time;
	fresh->lease = s->record.lease;
	fresh->flags = s->record.flags & RECORD_F_UNBOUND;
	s->fresh.ifindex = s->record.ifindex;
	remember_rule(s, fresh, unbound);
	if (!bpf_map_update_elem(MAP(MAP_FLOWS), &s->flow_key, fresh, former ? BPF_ANY : BPF_NOEXIST)) {
		account_flow(s, fresh->lease, 1);
		if (former)
			account_flow(s, payer, -1);
	}
	return bpf_map_lookup_elem(MAP(MAP_FLOWS), &s->flow_key); /* also when another CPU was quicker */
}

/* A flow that was opened for a packet that did not pass after all. */
static __always_inline void forget_flow(struct scratch *s, struct flow *flow)
{
	__u64 payer = flow->lease;

	if (!bpf_map_delete_elem(MAP(MAP_FLOWS), &s->flow_key))
		account_flow(s, payer, -1);
}

/* The packet's flow, and whether it may pass now. The flow is also given when it may not. */
static __always_inline int admit(struct __sk_buff *skb, struct scratch *s, struct flow **found)
{
	struct record *record = &s->record;
	struct flow *flow, *former = 0;
	__u8 unbound = 0;
	int reason;

	flow = find_flow(s);
	if ((!flow || flow->lane != LANE_TAP) && !s->proxied && find_leg(s))
		return OUT_LEG;
	if (s->related)
		turn_round(s);
	if (flow && starts_anew(s, flow)) {
		if (record->side == SIDE_SERVER) {
			forget_flow(s, flow);
			s->flow_key = s->key;
			record->side = SIDE_CLIENT;
		} else {
			former = flow;
		}
		flow = 0;
	}
	if (flow) {
		*found = flow;
		record->flow = flow->start;
		record->lease = flow->lease;
		reason = is_misplaced(s, flow);
	} else {
		reason = may_open(s);
	}
	if (s->proxied) {
		record->lane = LANE_RELAY;
		unbound = 1; /* the proxy asks for a token */
	} else if (!reason && !(flow && recall_rule(s, flow, &unbound))) {
		reason = ask_rules(s, &unbound);
		if (!reason && flow)
			remember_rule(s, flow, unbound);
	}
	if (!reason && record->lane == LANE_RELAY && (s->role != ROLE_AGENT || record->side != SIDE_CLIENT))
		reason = REASON_NO_FLOW; /* the server's side of it is the gateway itself */
	if (!reason)
		reason = ask_leases(skb, s, flow, unbound);
	if (!reason && is_impostor(skb, s))
		reason = REASON_IMPOSTOR;
	/* What carries nothing always gets through: nobody would send a reset or the last acknowledgement again. */
	if (!reason && record->lane == LANE_TAP && (record->payload || record->protocol != IPPROTO_TCP) &&
	    exceeds_share(s, record->lease))
		reason = REASON_RING_SHARE;
	if (!reason && former)
		reason = close_former(s, former);
	if (reason || flow)
		return reason;
	if (!may_hold(s, record->lease))
		return REASON_FLOW_SHARE;
	flow = open_flow(s, former, unbound);
	if (!flow)
		return REASON_FLOWS_FULL;
	*found = flow;
	record->flow = flow->start;
	return REASON_NONE;
}

#endif
