/* SPDX-License-Identifier: Apache-2.0
 *
 * The relay lane: to a socket of the gateway instead of to the server.
 *
 * A segment goes to the socket of its own connection, whoever has it: so a relay that was replaced keeps its connections.
 * Only a connection's first segment goes to a listener, one of those that map relays names, by the flow's hash: each
 * flow and its retransmissions to the same, and when one comes or goes the others keep theirs. (And the last segment of a
 * handshake that the listener answered with a SYN cookie, where there is no socket yet.) Where no listener is, a SYN is
 * dropped: its sender tries again, and finds the relay that is back. Any other segment without a socket is answered with
 * a reset: the relay that had the connection is gone, and with it what was said. The stack's own reset would not do,
 * since it sends none in the name of an address that it does not have.
 *
 * The packet is handed over with a mark of its own, by which a routing rule delivers it here. Nothing of it leaves: the
 * interlock and the gate do not forward that mark, and the hop limit is used up where both are gone, and the rule too.
 */
#ifndef VERBATIM_STEER_H
#define VERBATIM_STEER_H

#include "flow.h"

#define RELAY_TRIES 4 /* listeners that are looked for before a SYN is dropped */

enum socket_found { SOCKET_NONE = 0, SOCKET_ASSIGNED = 1, SOCKET_WAITS = 2 };

/* The kernel must not forward the packet, whatever becomes of it. Not 0: it could not be done. */
static __always_inline int exhaust(struct __sk_buff *skb, struct scratch *s)
{
	__u8 *ttl = &s->bytes[0], last = 1;

	if (s->record.family == 6)
		return bpf_skb_store_bytes(skb, s->packet + offsetof(struct ipv6hdr, hop_limit), &last, 1, BPF_F_RECOMPUTE_CSUM);
	if (s->record.family != 4 || LOAD(skb, s->packet + offsetof(struct iphdr, ttl), s, 2))
		return -1;
	return bpf_l3_csum_replace(skb, s->packet + offsetof(struct iphdr, check), bpf_htons(*ttl << 8), bpf_htons(last << 8), 2) ||
	       bpf_skb_store_bytes(skb, s->packet + offsetof(struct iphdr, ttl), &last, 1, 0);
}

/* The socket that a packet with these addresses and this destination port would find. To be released. */
static __always_inline struct bpf_sock *look_up_socket(struct __sk_buff *skb, struct scratch *s, __u16 port)
{
	struct bpf_sock_tuple *tuple = &s->tuple;

	if (s->record.family == 4) {
		__builtin_memcpy(&tuple->ipv4.saddr, s->key.source + 12, 4);
		__builtin_memcpy(&tuple->ipv4.daddr, s->key.destination + 12, 4);
		tuple->ipv4.sport = bpf_htons(s->key.source_port);
		tuple->ipv4.dport = bpf_htons(port);
		return bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple->ipv6.saddr, s->key.source, 16);
	__builtin_memcpy(tuple->ipv6.daddr, s->key.destination, 16);
	tuple->ipv6.sport = bpf_htons(s->key.source_port);
	tuple->ipv6.dport = bpf_htons(port);
	return bpf_skc_lookup_tcp(skb, tuple, sizeof(tuple->ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* A listener that the address and port happen to fit is not meant. The stack finds one that waits (TIME_WAIT) by itself. */
static __always_inline enum socket_found to_connection(struct __sk_buff *skb, struct scratch *s)
{
	struct bpf_sock *sk = look_up_socket(skb, s, s->key.destination_port);
	enum socket_found found = SOCKET_NONE;

	if (!sk)
		return SOCKET_NONE;
	if (sk->state == BPF_TCP_TIME_WAIT)
		found = SOCKET_WAITS;
	else if (sk->state != BPF_TCP_LISTEN && !bpf_sk_assign(skb, sk, 0))
		found = SOCKET_ASSIGNED;
	bpf_sk_release(sk);
	return found;
}

static __always_inline __u64 mix(__u64 value)
{
	value = (value ^ value >> 32) * 0x9e3779b97f4a7c15ull;
	return value ^ value >> 29;
}

static __always_inline __u64 hash_of(struct flow_key *key)
{
	__u64 *source = (__u64 *)key->source, *destination = (__u64 *)key->destination;
	__u64 ports = (__u64)key->source_port << 16 | key->destination_port;

	return mix(mix(mix(source[0] ^ destination[0]) + source[1]) ^ mix(destination[1]) ^ ports);
}

/* The relay with the highest weight for this flow, of those that were not tried (rendezvous hashing). Sets .port; 0: none.
 * The choice is kept in the scratch value, so that the verifier does not follow each way through the slots. */
static __always_inline int pick_relay(struct scratch *s, __u64 hash)
{
	*(volatile __u64 *)&s->weight = 0;
	s->port = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RELAYS_MAX; i++) {
		__u32 slot = i;
		__u64 weight = mix(hash ^ (slot + 1)) | 1;
		struct relay *relay;

		if (*(volatile __u64 *)&s->tried & 1ull << slot)
			continue;
		relay = bpf_map_lookup_elem(MAP(MAP_RELAYS), &slot);
		if (!relay || !relay->port || weight <= *(volatile __u64 *)&s->weight)
			continue;
		*(volatile __u64 *)&s->weight = weight;
		s->port = relay->port;
		s->slot = slot;
	}
	s->tried |= 1ull << (s->slot & (RELAYS_MAX - 1));
	return s->port;
}

static __always_inline enum socket_found to_listener(struct __sk_buff *skb, struct scratch *s)
{
	__u64 hash = hash_of(&s->key);

	s->tried = 0;
	for (int i = 0; i < RELAY_TRIES; i++) {
		enum socket_found found = SOCKET_NONE;
		struct bpf_sock *sk;

		if (!pick_relay(s, hash))
			return SOCKET_NONE;
		sk = look_up_socket(skb, s, s->port);
		if (!sk)
			continue;
		if (sk->state == BPF_TCP_LISTEN && !bpf_sk_assign(skb, sk, 0))
			found = SOCKET_ASSIGNED;
		bpf_sk_release(sk);
		if (found)
			return found;
	}
	return SOCKET_NONE;
}

/* May the packet answer a SYN cookie? It is the first of its side behind the SYN, and acknowledges the other's only. */
static __always_inline int may_bear_cookie(struct scratch *s, struct flow *flow)
{
	struct side_state *client = &flow->sides[SIDE_CLIENT], *server = &flow->sides[SIDE_SERVER];

	return (s->record.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_ACK && client->flags & SIDE_F_SYN &&
	       server->flags & SIDE_F_SYN && flow->end == FLOW_LIVE && s->record.seq == client->isn + 1 &&
	       s->record.ack == server->isn + 1;
}

/* Mark a packet that is for a relay; a socket that it may have been assigned goes with it if this fails. */
static __always_inline int hand_over(struct __sk_buff *skb, struct scratch *s)
{
	if (exhaust(skb, s))
		return REASON_MALFORMED;
	skb->mark = MARK_STEERED;
	return REASON_NONE;
}

/* A SYN on ports whose former connection the relay closed first, and which waits (TIME_WAIT). Kernels let no listener take
 * it meanwhile, and the stack itself would look for one at the server's port, and might find the gateway's own. So the
 * waiting socket gets it as a bare acknowledgement that it does not expect: what it answers makes the agent reset what is
 * left of the former connection (RFC 9293 section 3.10.7.3), and the SYN that is sent again goes to a listener. */
static __always_inline int knock(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->transport + 12; /* data offset and flags */
	__be16 *word = (__be16 *)s->bytes, from, to;

	if (LOAD(skb, at, s, sizeof(*word)))
		return REASON_MALFORMED;
	from = *word;
	to = (from & bpf_htons(0xff00)) | bpf_htons(TCP_ACK);
	if (bpf_l4_csum_replace(skb, s->transport + offsetof(struct tcphdr, check), from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, at, &to, sizeof(to), 0))
		return REASON_MALFORMED;
	return hand_over(skb, s);
}

/* A packet of an agent in the relay lane. ICMP errors about what the relay sent are for the stack. */
static __always_inline int steer(struct __sk_buff *skb, struct scratch *s, struct flow *flow)
{
	enum socket_found found = SOCKET_WAITS;
	int opens = is_tcp_syn(s);

	if (!s->related) {
		found = to_connection(skb, s);
		if (found == SOCKET_NONE && (opens || may_bear_cookie(s, flow)))
			found = to_listener(skb, s);
	}
	if (found == SOCKET_WAITS && opens) {
		if (!flow->sides[SIDE_CLIENT].packets) { /* over before it began: the next SYN begins anew, and this is not told of */
			flow->end = FLOW_IDLE;
			flow->reported = 1;
		}
		return knock(skb, s);
	}
	if (found == SOCKET_NONE && !(s->record.tcp_flags & TCP_RST)) /* a reset says what is known already */
		return opens ? REASON_RELAY : REASON_RELAY_LOST;
	return hand_over(skb, s);
}

/* A packet for a relay that speaks to a server in the agent's name. */
static __always_inline int steer_leg(struct __sk_buff *skb, struct scratch *s)
{
	struct leg *leg = find_leg(s);
	int reason;

	if (!leg || !(leg->flags & LEG_F_TRANSPARENT))
		return REASON_NO_FLOW;
	reason = admit_leg(skb, s, leg);
	if (reason)
		return reason;
	if (!s->related && to_connection(skb, s) == SOCKET_NONE)
		return REASON_NO_FLOW;
	count_leg(s, leg, SIDE_SERVER);
	return hand_over(skb, s);
}

/* A packet of a flow that a relay serves, or that goes to a proxy's own address. */
static __always_inline int relay_packet(struct __sk_buff *skb, struct scratch *s, struct flow **flow)
{
	int reason = s->proxied ? REASON_NONE : steer(skb, s, *flow);

	if (!reason) {
		if (!(is_tcp_syn(s) && (*flow)->end != FLOW_LIVE))
			count(s, *flow);
	} else if (!(*flow)->sides[SIDE_CLIENT].packets) { /* nobody took it: it never was a flow */
		forget_flow(s, *flow);
		s->record.flow = 0;
		*flow = 0;
	}
	return reason;
}

#endif
