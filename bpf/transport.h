/* SPDX-License-Identifier: Apache-2.0
 *
 * TCP, UDP, ICMP and ICMPv6: ports, lengths, TCP's numbers; the packet that an ICMP error is about.
 */
#ifndef VERBATIM_TRANSPORT_H
#define VERBATIM_TRANSPORT_H

#include "scratch.h"

#define TCP_MSS 2
#define TCP_WINDOW_SCALE 3
#define WINDOW_SCALE_MAX 14 /* RFC 7323 section 2.3 */
#define MSS_IPV4 536 /* RFC 9293 section 3.7.1, of a SYN without the option */
#define MSS_IPV6 1220
#define MSS_LEAST 88 /* of an option that is no use */
#define ICMP_ERROR_MAX 576 /* bytes of the packet that carries an error: RFC 1812 section 4.3.2.3 */
#define ICMPV6_ERROR_MAX 1280 /* RFC 4443 section 2.4 (c) */

static __always_inline int parse_tcp(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	struct tcphdr *tcp = (struct tcphdr *)s->bytes;
	__u32 header;

	if (LOAD(skb, s->transport, s, sizeof(*tcp)))
		return REASON_MALFORMED;
	header = tcp->doff * 4;
	if (header < sizeof(*tcp) || s->transport + header > s->end)
		return REASON_MALFORMED;
	s->key.source_port = bpf_ntohs(tcp->source);
	s->key.destination_port = bpf_ntohs(tcp->dest);
	record->seq = bpf_ntohl(tcp->seq);
	record->ack = bpf_ntohl(tcp->ack_seq);
	record->window = bpf_ntohs(tcp->window);
	record->tcp_flags = s->bytes[13];
	s->check = tcp->check;
	record->header = s->transport - s->packet + header;
	record->payload = s->end - s->transport - header;
	s->opens = (record->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	return REASON_NONE;
}

/* A SYN's window scale and segment size, for those who read windows later. A malformed list of options is not our
 * business. */
static __always_inline void read_syn_options(struct __sk_buff *skb, struct scratch *s)
{
	__u32 options = s->transport + sizeof(struct tcphdr), length = s->packet + s->record.header - options;

	s->mss = s->record.family == 6 ? MSS_IPV6 : MSS_IPV4;
	if (find_option(skb, s, options, length, TCP_MSS, TCP_MSS) && s->bytes[1] == 4) {
		s->mss = s->bytes[2] << 8 | s->bytes[3];
		if (s->mss < MSS_LEAST)
			s->mss = MSS_LEAST;
	}
	if (find_option(skb, s, options, length, TCP_WINDOW_SCALE, TCP_WINDOW_SCALE) && s->bytes[1] == 3) {
		s->scaled = 1;
		s->scale = s->bytes[2] > WINDOW_SCALE_MAX ? WINDOW_SCALE_MAX : s->bytes[2];
	}
}

static __always_inline int parse_udp(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	struct udphdr *udp = (struct udphdr *)s->bytes;
	__u32 length;

	if (LOAD(skb, s->transport, s, sizeof(*udp)))
		return REASON_MALFORMED;
	/* Bytes between the datagram's end and the packet's would pass without being part of what is said. */
	length = bpf_ntohs(udp->len);
	if (length < sizeof(*udp) || s->transport + length != s->end)
		return REASON_MALFORMED;
	s->key.source_port = bpf_ntohs(udp->source);
	s->key.destination_port = bpf_ntohs(udp->dest);
	record->header = s->transport - s->packet + sizeof(*udp);
	record->payload = length - sizeof(*udp);
	s->opens = 1;
	return REASON_NONE;
}

/* Ports of an ICMP echo flow: the client's is the identifier, the server's is 0. Other messages: no key. */
static __always_inline int echo_ports(struct scratch *s, __u8 protocol, __u8 type, __u16 identifier)
{
	__u8 request = protocol == IPPROTO_ICMP ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
	__u8 reply = protocol == IPPROTO_ICMP ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;

	if (type == request) {
		s->key.source_port = identifier;
		s->opens = 1;
	} else if (type == reply) {
		s->key.destination_port = identifier;
	} else {
		return REASON_PROTOCOL;
	}
	return REASON_NONE;
}

static __always_inline int is_icmp_error(__u8 protocol, __u8 type)
{
	if (protocol == IPPROTO_ICMP)
		return type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
	return type >= ICMPV6_DEST_UNREACH && type <= ICMPV6_PARAMPROB;
}

/* The addresses of the packet that an ICMP error complains about become the key; its transport header is found. */
static __always_inline int parse_inner_ip(struct __sk_buff *skb, struct scratch *s, __u32 *offset, __u8 *protocol)
{
	if (s->record.family == 4) {
		struct iphdr *ip = (struct iphdr *)s->bytes;

		if (LOAD(skb, *offset, s, sizeof(*ip)))
			return REASON_MALFORMED;
		if (ip->version != 4 || ip->ihl < 5 || *offset + sizeof(*ip) > s->end)
			return REASON_MALFORMED;
		if (ip->frag_off & bpf_htons(0x1fff))
			return REASON_PROTOCOL; /* its ports are in another fragment */
		map_ipv4(s->key.source, ip->saddr);
		map_ipv4(s->key.destination, ip->daddr);
		*protocol = ip->protocol;
		*offset += ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = (struct ipv6hdr *)s->bytes;

		if (LOAD(skb, *offset, s, sizeof(*ip)))
			return REASON_MALFORMED;
		if (ip->version != 6 || *offset + sizeof(*ip) > s->end)
			return REASON_MALFORMED;
		__builtin_memcpy(s->key.source, &ip->saddr, 16);
		__builtin_memcpy(s->key.destination, &ip->daddr, 16);
		*protocol = ip->nexthdr;
		*offset += sizeof(*ip);
	}
	return REASON_NONE;
}

static __always_inline int parse_icmp_error(struct __sk_buff *skb, struct scratch *s)
{
	__u32 offset = s->transport + 8;
	__be16 *ports;
	__u8 protocol;
	int reason;

	/* What it quotes is not kept with the session: so it is no way to carry much. */
	if (s->record.length > (s->record.family == 4 ? ICMP_ERROR_MAX : ICMPV6_ERROR_MAX))
		return REASON_MALFORMED;
	reason = parse_inner_ip(skb, s, &offset, &protocol);
	if (reason)
		return reason;
	if (offset + 8 > s->end || LOAD(skb, offset, s, 8))
		return REASON_MALFORMED;
	/* An error goes to the sender of the packet that it is about. Else anything could be sent to anyone in one. */
	if (!same_address(s->key.source, s->record.destination))
		return REASON_PROTOCOL;
	s->related = 1;
	s->key.protocol = protocol;
	ports = (__be16 *)s->bytes;
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) {
		s->key.source_port = bpf_ntohs(ports[0]);
		s->key.destination_port = bpf_ntohs(ports[1]);
		return REASON_NONE;
	}
	if (protocol != s->record.protocol) /* an ICMP of its own version */
		return REASON_PROTOCOL;
	reason = echo_ports(s, protocol, s->bytes[0], bpf_ntohs(ports[2]));
	s->opens = 0;
	return reason;
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct scratch *s)
{
	struct record *record = &s->record;
	__u8 type;

	if (s->transport + 8 > s->end || LOAD(skb, s->transport, s, 8))
		return REASON_MALFORMED;
	record->header = s->transport - s->packet + 8;
	type = s->bytes[0];
	if (is_icmp_error(record->protocol, type))
		return parse_icmp_error(skb, s);
	record->payload = s->end - s->transport - 8;
	return echo_ports(s, record->protocol, type, bpf_ntohs(*(__be16 *)(s->bytes + 4)));
}

static __always_inline void begin_key(struct scratch *s)
{
	__builtin_memcpy(s->key.source, s->record.source, 16);
	__builtin_memcpy(s->key.destination, s->record.destination, 16);
	s->key.family = s->record.family;
	s->key.protocol = s->record.protocol;
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct scratch *s)
{
	__u8 protocol = s->record.protocol;

	begin_key(s);
	if (protocol == IPPROTO_TCP)
		return parse_tcp(skb, s);
	if (protocol == IPPROTO_UDP)
		return parse_udp(skb, s);
	if (protocol == (s->record.family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6))
		return parse_icmp(skb, s);
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 || protocol == IPPROTO_GRE ||
	    protocol == IPPROTO_ESP || protocol == IPPROTO_AH || protocol == IPPROTO_MPLS ||
	    protocol == IPPROTO_MH || protocol == 139 /* HIP */ || protocol == 140 /* Shim6 */)
		return REASON_UNREADABLE;
	return REASON_PROTOCOL;
}

#endif
