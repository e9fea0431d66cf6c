/* SPDX-License-Identifier: Apache-2.0
 *
 * Frame -> addresses, ports, lengths: fills scratch.record and scratch.key, or says why it cannot.
 */
#ifndef VERBATIM_PARSE_H
#define VERBATIM_PARSE_H

#include "checksum.h"
#include "scratch.h"
#include "transport.h"

#define VLAN_TAGS_MAX 2
#define EXTENSIONS_MAX 6

#define VLAN_ID 0x0fff

/* A frame of a VLAN belongs to the VLAN's own interface, where the program sees it again, without the tag: here it is
 * neither recorded nor marked. Where there is no such interface, the stack drops it. Tags that give a priority only (IEEE
 * 802.1Q, VLAN 0) are taken off by the stack. */
static __always_inline int parse_ethernet(struct __sk_buff *skb, struct scratch *s, __be16 *protocol)
{
	struct record *record = &s->record;
	__be16 next;

	if (LOAD(skb, 0, s, ETH_HLEN))
		return REASON_MALFORMED;
	__builtin_memcpy(s->link, ((struct ethhdr *)s->bytes)->h_source, ETH_ALEN);
	next = ((struct ethhdr *)s->bytes)->h_proto;
	s->packet = ETH_HLEN;
	if (skb->vlan_present) {
		record->flags |= RECORD_F_VLAN;
		record->vlan = skb->vlan_tci;
		if (skb->vlan_tci & VLAN_ID)
			return OUT_LOCAL;
	}
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		__be16 *tag;

		if (next != bpf_htons(ETH_P_8021Q) && next != bpf_htons(ETH_P_8021AD))
			break;
		if (LOAD(skb, s->packet, s, 4))
			return REASON_MALFORMED;
		tag = (__be16 *)s->bytes;
		if (bpf_ntohs(tag[0]) & VLAN_ID)
			return OUT_LOCAL;
		if (!(record->flags & RECORD_F_VLAN)) { /* the outer tag is recorded */
			record->flags |= RECORD_F_VLAN;
			record->vlan = bpf_ntohs(tag[0]);
		}
		next = tag[1];
		s->packet += 4;
	}
	*protocol = next;
	return REASON_NONE;
}

/* The IP length decides where the packet ends, except for BIG TCP, whose length field is 0. */
static __always_inline int set_end(struct __sk_buff *skb, struct scratch *s, __u32 length, __u32 least)
{
	__u32 room = skb->len - s->packet;

	if (length > room || length < least || length > PACKET_BYTES_MAX)
		return REASON_MALFORMED;
	s->record.length = length;
	s->end = s->packet + length;
	return REASON_NONE;
}

/* What the stack of the gateway consumes is none of the recorder's business, and is not marked. */
static __always_inline int is_local(struct __sk_buff *skb, struct scratch *s)
{
	if (skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST)
		return 1;
	s->local = !!bpf_map_lookup_elem(MAP(MAP_LOCALS), s->record.destination);
	return s->local;
}

static __always_inline int is_loopback(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && !words[2] && words[3] == bpf_htonl(1);
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	__u32 header, length;
	struct iphdr *ip = (struct iphdr *)s->bytes;
	int reason;

	if (LOAD(skb, s->packet, s, sizeof(*ip)))
		return REASON_MALFORMED;
	record->family = 4;
	map_ipv4(record->source, ip->saddr);
	map_ipv4(record->destination, ip->daddr);
	header = (ip->ihl & 15) * 4;
	/* Loopback addresses have no place on a wire (RFC 1122 section 3.2.1.3), whatever route_localnet says. */
	if (ip->version != 4 || header < sizeof(*ip) || record->source[12] == 127 || record->destination[12] == 127)
		return REASON_MALFORMED;
	length = bpf_ntohs(ip->tot_len);
	if (!length && skb->gso_size)
		length = skb->len - s->packet;
	reason = set_end(skb, s, length, header);
	if (reason)
		return reason;
	s->transport = s->packet + header;
	record->protocol = ip->protocol;
	/* Groups, the limited broadcast and a used-up hop limit are never forwarded: the last would let an agent put
	 * bytes into the recording that its peer never got. */
	if (ip->frag_off & bpf_htons(0x3fff)) /* more fragments, or an offset */
		record->flags |= RECORD_F_FRAGMENT;
	if (record->destination[12] >= 224 || is_local(skb, s) || ip->ttl <= 1)
		return OUT_LOCAL;
	if (record->flags & RECORD_F_FRAGMENT)
		return REASON_FRAGMENT;
	return check_ipv4_header(skb, s, header);
}

/* Step over one IPv6 extension header. Returns REASON_NONE with .transport moved, -1 when there is none to step over. */
static __always_inline int step_over(struct __sk_buff *skb, struct scratch *s, __u8 *next)
{
	__u32 length;

	if (*next != IPPROTO_HOPOPTS && *next != IPPROTO_ROUTING && *next != IPPROTO_DSTOPTS &&
	    *next != IPPROTO_FRAGMENT)
		return -1;
	if (LOAD(skb, s->transport, s, 8))
		return REASON_MALFORMED;
	length = (s->bytes[1] + 1) * 8;
	if (*next == IPPROTO_FRAGMENT) {
		if (s->bytes[2] || s->bytes[3] & 0xf9) { /* not atomic (RFC 6946): an offset, or more fragments */
			s->record.flags |= RECORD_F_FRAGMENT;
			return REASON_FRAGMENT;
		}
		length = 8;
	} else if (*next == IPPROTO_ROUTING) { /* with segments left, the destination is not the one that rules are asked */
		return REASON_UNREADABLE;      /* about; without, it is of no use but to carry something */
	}
	s->transport += length;
	if (s->transport > s->end)
		return REASON_MALFORMED;
	*next = s->bytes[0];
	return REASON_NONE;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	struct ipv6hdr *ip = (struct ipv6hdr *)s->bytes;
	__u32 length;
	int reason;
	__u8 next;

	if (LOAD(skb, s->packet, s, sizeof(*ip)))
		return REASON_MALFORMED;
	record->family = 6;
	__builtin_memcpy(record->source, &ip->saddr, 16);
	__builtin_memcpy(record->destination, &ip->daddr, 16);
	/* Addresses of IPv4 in IPv6's notation have no place on a wire, and would pass for the agent's IPv4 address. */
	if (ip->version != 6 || is_mapped(record->source) || is_mapped(record->destination) ||
	    is_loopback(record->source) || is_loopback(record->destination))
		return REASON_MALFORMED;
	length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	if (length == sizeof(*ip) && skb->gso_size)
		length = skb->len - s->packet;
	reason = set_end(skb, s, length, sizeof(*ip));
	if (reason)
		return reason;
	s->transport = s->packet + sizeof(*ip);
	next = ip->nexthdr;
	record->protocol = next;
	if (record->destination[0] == 0xff || is_local(skb, s) || ip->hop_limit <= 1)
		return OUT_LOCAL;
	if (record->destination[0] == 0xfe && (record->destination[1] & 0xc0) == 0x80) {
		s->local = 1; /* link-local: never forwarded */
		return OUT_LOCAL;
	}
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		reason = step_over(skb, s, &next);
		if (reason < 0)
			return REASON_NONE;
		record->protocol = next;
		if (reason)
			return reason;
	}
	return REASON_UNREADABLE;
}

static __always_inline int parse(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	__be16 protocol = 0;
	__u32 *role, ifindex = skb->ifindex;
	int reason;

	reason = parse_ethernet(skb, s, &protocol);
	if (reason)
		return reason;
	if (protocol == bpf_htons(ETH_P_IP))
		reason = parse_ipv4(skb, s);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		reason = parse_ipv6(skb, s);
	else
		return OUT_LOCAL;
	role = bpf_map_lookup_elem(MAP(MAP_INTERFACES), &ifindex);
	if (!role) /* renamed, perhaps: what protects the gateway by the interface's name does not apply any more */
		return OUT_NO_ROLE;
	s->role = *role;
	if (reason == OUT_LOCAL)
		return OUT_LOCAL;
	if (skb->pkt_type == PACKET_OTHERHOST)
		return OUT_FOREIGN;
	if (reason)
		return reason;
	reason = parse_transport(skb, s);
	s->record.source_port = s->key.source_port;
	s->record.destination_port = s->key.destination_port;
	if (!reason && s->record.tcp_flags & TCP_SYN)
		read_syn_options(skb, s);
	if (!reason && s->record.protocol == IPPROTO_TCP && !s->related && is_unverified(skb, s))
		s->record.flags |= RECORD_F_UNVERIFIED;
	return reason;
}

#endif
