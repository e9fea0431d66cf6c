// SPDX-License-Identifier: Apache-2.0
/*
 * The gate: a second program, on the way out of every interface. A packet that came in by an interface leaves only when
 * wire.c has recorded it, which it tells by a mark of its own: no firewall rule, route or flow table can set or forge
 * it, and it is asked after all of them. What the gateway itself sends came in nowhere.
 *
 * TC_ACT_UNSPEC: other filters of the interface may still have their say.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>

#include "wire.h"

int gate(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex && skb->tc_index != CLASS_RECORDED)
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}
