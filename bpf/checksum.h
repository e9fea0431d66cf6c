/* SPDX-License-Identifier: Apache-2.0
 *
 * Checksums: what a receiver, or the gateway's own stack, would drop must not pass for part of a conversation.
 */
#ifndef VERBATIM_CHECKSUM_H
#define VERBATIM_CHECKSUM_H

#include "scratch.h"

static __always_inline __u32 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The IPv4 header, whose first 20 bytes are in .bytes. The stack drops it after us if its checksum is wrong, or its
 * options are: of these only the two without a meaning pass, the others are no use to an agent (RFC 7126). */
static __always_inline int check_ipv4_header(struct __sk_buff *skb, struct scratch *s, __u64 length)
{
	__u32 *words = (__u32 *)s->bytes, sum = 0;

#pragma unroll
	for (int i = 0; i < (int)sizeof(struct iphdr) / 4; i++)
		sum += (words[i] & 0xffff) + (words[i] >> 16);
	if (length > sizeof(struct iphdr)) {
		__builtin_memset(s->bytes, 0, OPTIONS_MAX);
		length -= sizeof(struct iphdr) + 1;
		asm volatile("" : "+r"(length));
		if (length >= OPTIONS_MAX)
			return REASON_MALFORMED;
		length += 1;
		if (bpf_skb_load_bytes(skb, s->packet + sizeof(struct iphdr), s->bytes, length))
			return REASON_MALFORMED;
#pragma unroll
		for (int i = 0; i < OPTIONS_MAX / 4; i++) {
			if (words[i] & ~0x01010101)
				return REASON_UNREADABLE;
			sum += (words[i] & 0xffff) + (words[i] >> 16);
		}
	}
	return fold(sum) == 0xffff ? REASON_NONE : REASON_MALFORMED;
}

/* Has nobody verified TCP's checksum? A device may have, or filled it in while it joined segments; or it is not filled in
 * yet, which shows: the kernel then has no use for the replacement that is tried here, and does nothing. */
static __always_inline int is_unverified(struct __sk_buff *skb, struct scratch *s)
{
	__u32 at = s->transport + offsetof(struct tcphdr, check);
	__u16 before = s->check, *now = (__u16 *)s->bytes;

	if (skb->gso_size || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 0;
	if (bpf_l4_csum_replace(skb, at, 0, 1, sizeof(before)) || LOAD(skb, at, s, sizeof(before)))
		return 1;
	if (*now == before)
		return 0;
	*now = before;
	bpf_skb_store_bytes(skb, at, s->bytes, sizeof(before), 0);
	return 1;
}

#endif
