// SPDX-License-Identifier: Apache-2.0
/*
 * The gate: a second program, on the way out of every interface. A packet that came in by an interface leaves only when
 * wire.c has recorded it, which it tells by a mark of its own: no firewall rule, route or flow table can set or forge
 * it, and it is asked after all of them. What the gateway itself sends came in nowhere; what of it relays send is counted.
 *
 * TC_ACT_UNSPEC: other filters of the interface may still have their say.
 */
#include "own.h"

int gate(struct __sk_buff *skb)
{
	if (!skb->ingress_ifindex)
		return own(skb);
	return skb->tc_index == CLASS_RECORDED ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
