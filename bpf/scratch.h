/* SPDX-License-Identifier: Apache-2.0
 *
 * What the parts of the program share: maps by number, the packet in hand, ways out.
 */
#ifndef VERBATIM_SCRATCH_H
#define VERBATIM_SCRATCH_H

#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/if_packet.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "wire.h"

#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

#define OPTIONS_MAX 40 /* bytes of options in an IPv4 or TCP header */
#define PACKET_BYTES_MAX (512 * 1024) /* GSO_MAX_SIZE, the longest BIG TCP super-packet */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* Steps return a reason to refuse, REASON_NONE to go on, or one of these ways out without a record. */
enum way_out {
	OUT_LOCAL = 64,	  /* not to be forwarded: the stack takes it, unmarked */
	OUT_FOREIGN = 65, /* another host's frame */
	OUT_NO_ROLE = 66,
	OUT_LEG = 67, /* for a relay that speaks to a server in the agent's name */
};

struct scratch {
	struct record record;	  /* of the packet in hand */
	struct flow_key key;	  /* as the packet's sender sends */
	struct flow_key flow_key; /* as the flow's client sends */
	struct tracked fresh; /* a new flow; its windows stay 0 */
	struct held held;
	struct rule_key rule_key;
	struct refusal_key refusal_key;
	struct refusal refusal;
	struct owner owner;	  /* whose quota is looked at */
	struct quota quota;
	struct network_key network_key;
	__u32 slot;		  /* of the relay that a new connection goes to */
	struct flow_key leg_key;  /* as a relay sends to a server */
	struct bpf_sock_tuple tuple;
	__u32 port;		  /* of that relay's listener */
	__u64 weight;
	__u64 tried;		  /* slots whose listener could not be had, one bit each */
	__u32 packet;	 /* offset of the IP header in the frame */
	__u32 transport; /* offset of the transport header */
	__u32 end;	 /* offset of the IP packet's end: link-layer padding is not part of it */
	__u32 rule;	 /* number of the rule that lets the packet pass */
	__u32 rules;	 /* settings.rules, read before map rules */
	__u32 role;
	__u32 cursor; /* of find_option(): kept here so that the verifier does not follow each way through the options */
	__u8 opens;   /* the packet may start a flow; on TCP: a SYN without ACK */
	__u8 related; /* an ICMP error, key is that of the packet it complains about */
	__u8 scale;   /* of a SYN, as mss and scaled */
	__u8 local;   /* addressed to the gateway alone: not to a group, nor to everybody */
	__u8 link[8]; /* the sender's link-layer address, and two zeros */
	__u32 ring;   /* its bytes */
	__u32 used;   /* of them, when the packet came */
	__u16 mss;
	__u16 check;  /* TCP's checksum, as it came */
	__u8 scaled;  /* the SYN offers a window scale */
	__u8 proxied; /* addressed to the gateway, to the port of an explicit proxy */
	__u8 names;   /* rules name hosts */
	__u8 spare;
	__u8 bytes[64]; /* the header in hand */
};

static __always_inline void bump(__u32 index, __u64 by)
{
	__u64 *counter = bpf_map_lookup_elem(MAP(MAP_COUNTERS), &index);

	if (counter)
		*counter += by;
}

/* Headers are copied to .bytes before they are read: this reads non-linear packets, which direct access to the packet
 * cannot, and checks the bounds. Not 0: the packet is shorter. */
#define LOAD(skb, offset, s, size) bpf_skb_load_bytes(skb, offset, (s)->bytes, size)

static __always_inline void map_ipv4(__u8 *to, __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

static __always_inline int is_mapped(const __u8 *address)
{
	const __u32 *words = (const __u32 *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

/* Both are members of the scratch value, at multiples of 8. clang would call a memcmp that is not there. */
static __always_inline int same_address(const __u8 *a, const __u8 *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

static __always_inline void reverse(struct flow_key *to, const struct flow_key *from)
{
	__builtin_memcpy(to->source, from->destination, 16);
	__builtin_memcpy(to->destination, from->source, 16);
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
	to->protocol = from->protocol;
	to->family = from->family;
	to->reserved = 0;
}

static __always_inline __u8 byte_at(struct scratch *s, __u32 at)
{
	asm volatile("" : "+r"(at)); /* or clang drops the mask where it knows better; the verifier does not */
	return s->bytes[at & (sizeof(s->bytes) - 1)];
}

/* Look for one of two kinds among the options of an IPv4 or TCP header, which are built alike: 0 ends the list, 1 fills,
 * the others have a length. Found: the option's first bytes are those of .bytes. */
static __always_inline int find_option(struct __sk_buff *skb, struct scratch *s, __u32 offset, __u64 length, __u8 kind,
				       __u8 or_kind)
{
	__builtin_memset(s->bytes, 0, sizeof(s->bytes));
	length -= 1;
	asm volatile("" : "+r"(length)); /* the verifier needs the bound on this very register: clang shall not reason about it */
	if (length >= OPTIONS_MAX)
		return 0;
	length += 1;
	if (bpf_skb_load_bytes(skb, offset, s->bytes, length))
		return 0;
	s->cursor = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < OPTIONS_MAX; i++) {
		__u32 at = *(volatile __u32 *)&s->cursor;
		__u8 found = byte_at(s, at), size = byte_at(s, at + 1);

		if (found == 0 || at >= OPTIONS_MAX)
			return 0;
		if (found == kind || found == or_kind) {
			__u8 content = byte_at(s, at + 2), more = byte_at(s, at + 3);

			s->bytes[0] = found;
			s->bytes[1] = size;
			s->bytes[2] = content;
			s->bytes[3] = more;
			return 1;
		}
		if (found != 1 && size < 2)
			return 0;
		*(volatile __u32 *)&s->cursor = at + (found == 1 ? 1 : size);
	}
	return 0;
}

#endif
