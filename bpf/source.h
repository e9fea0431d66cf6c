/* SPDX-License-Identifier: Apache-2.0
 *
 * Does a packet come from where its source address says?
 */
#ifndef VERBATIM_SOURCE_H
#define VERBATIM_SOURCE_H

#include "scratch.h"

/* Does the packet come from where the routes lead for its source? IPv6 has no rp_filter. */
static __always_inline int is_spoofed(struct __sk_buff *skb, struct scratch *s)
{
	struct network_key *key = &s->network_key;
	__u32 *ifindex;

	key->prefixlen = sizeof(key->network) * 8;
	__builtin_memcpy(key->network, s->record.source, 16);
	ifindex = bpf_map_lookup_elem(MAP(MAP_NETWORKS), key);
	return !ifindex || *ifindex != skb->ifindex;
}

/* What the gateway itself sends is not recorded: an answer to a made-up source, the echo of a ping or the complaint
 * about a used-up hop limit, would carry what an agent likes to any host. Link-local sources stay on the link, and there
 * is no answer to none at all (DHCP, duplicate address detection). */
static __always_inline int misleads(struct __sk_buff *skb, struct scratch *s)
{
	const __u32 *source = (const __u32 *)s->record.source;

	if (s->role != ROLE_AGENT || !s->record.family)
		return 0;
	if (s->record.family == 6 && s->record.source[0] == 0xfe && (s->record.source[1] & 0xc0) == 0x80)
		return 0;
	if (!source[0] && !source[1] && !source[3] && (!source[2] || source[2] == bpf_htonl(0xffff)))
		return 0;
	return is_spoofed(skb, s);
}

/* Does the packet come from the lease's own link-layer address? */
static __always_inline int is_borrowed(struct scratch *s, struct lease *lease)
{
	__u32 *high = (__u32 *)lease->link, *from = (__u32 *)s->link;
	__u16 *low = (__u16 *)(lease->link + 4), *end = (__u16 *)(s->link + 4);

	return (*high || *low) && (*high != *from || *low != *end);
}

/* Has the packet's source a lease in force, where the packet comes from? */
static __always_inline int is_leased(struct __sk_buff *skb, struct scratch *s)
{
	struct lease *lease = bpf_map_lookup_elem(MAP(MAP_LEASES), s->key.source);

	return lease && lease->expires > s->record.time && (!lease->ifindex || lease->ifindex == skb->ifindex) &&
	       !is_borrowed(s, lease);
}

#endif
