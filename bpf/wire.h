/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel and user space share: the record in the ring and the values of the maps.
 * appliance/wire/abi.py mirrors this file; tests/wire/test_abi.py compares both layouts.
 *
 * Addresses are 16 bytes in network order, IPv4 as v4-mapped IPv6 (::ffff:a.b.c.d).
 * Ports, sequence numbers, lengths and flags are in host order. Times are nanoseconds of
 * CLOCK_BOOTTIME. No struct has implicit padding.
 */
#ifndef VERBATIM_WIRE_H
#define VERBATIM_WIRE_H

#define WIRE_ABI 1

enum record_kind {
	RECORD_PACKET = 1,   /* a forwarded packet: header, then the packet from its IP header on */
	RECORD_REFUSAL = 2,  /* refused packets of one source and reason: header, then the first bytes of the last one */
	RECORD_FLOW_END = 3, /* a flow ended: header, then struct flow */
};

enum lane { LANE_REFUSE = 0, LANE_TAP = 1, LANE_RELAY = 2 };

enum side { SIDE_CLIENT = 0, SIDE_SERVER = 1 }; /* client: the initiator of the flow; also the index of flow.sides */

enum role { ROLE_AGENT = 1, ROLE_UPSTREAM = 2 };

/* Why a packet was not forwarded. Those up to REASON_LAST_SILENT are dropped without an answer, so that TCP
 * retransmits; the others are answered with a reset (TCP) or "administratively prohibited" (the rest). */
enum reason {
	REASON_NONE = 0,
	REASON_RING_FULL = 1,
	REASON_JOURNAL_FULL = 2,
	REASON_FLOWS_FULL = 3,
	REASON_NO_FLOW = 4,       /* from upstream, no flow known */
	REASON_MALFORMED = 5,
	REASON_FRAGMENT = 6,
	REASON_IMPOSTOR = 7,      /* an answer from an agent-facing interface, and no lease of the server behind it */
	REASON_FLOW_SHARE = 8,    /* the lease has as many flows as it may have beside the others */
	REASON_RING_SHARE = 9,    /* the lease fills as much of the ring as it may beside the others */
	REASON_SPOOFED = 10,      /* the source belongs behind another interface, or to another link-layer address */
	REASON_GATEWAY = 11,      /* an agent asks for a service of the gateway itself that is not for agents */
	REASON_RELAY = 12,        /* the rule's lane is relay and no relay takes the connection now */
	REASON_NO_NAME = 13,      /* no rule yet, but some name hosts: the answer that tells of this address may be on its way */
	REASON_LAST_SILENT = 15,
	REASON_NO_LEASE = 16,
	REASON_LEASE_EXPIRED = 17,
	REASON_LEASE_CHANGED = 18, /* the flow began under another lease */
	REASON_NO_RULE = 19,
	REASON_RULE = 20,          /* the rule's lane is refuse */
	REASON_RELAY_LOST = 21,    /* a segment of a relayed connection that no relay has, or has any more */
	REASON_QUIC = 22,
	REASON_PROTOCOL = 23,      /* neither TCP, nor UDP, nor ICMP of a known flow; or not TCP, for a relay */
	REASON_INBOUND = 24,       /* a new flow from upstream */
	REASON_UNREADABLE = 25,    /* an encapsulation or extension header that the program cannot read */
	REASON_TUNNEL = 26,        /* UDP to a port of tunnels that no rule names */
	REASON_COUNT = 27,
};

/* Map counters, one u64 per CPU each: a reason below COUNTER_PACKETS, else one of these. */
enum counter {
	COUNTER_PACKETS = 32, /* recorded and forwarded */
	COUNTER_BYTES = 33,   /* of these, from the IP header on */
	COUNTER_LOCAL = 34,   /* passed to the stack unmarked: to the gateway itself, group and broadcast, hop limit used up */
	COUNTER_FOREIGN = 35, /* dropped: the frame is addressed to another host's link-layer address */
	COUNTER_NO_ROLE = 36, /* dropped: the interface is not in map interfaces */
	COUNTER_UNREPORTED = 37, /* flows that ended without room for a FLOW_END record: flow.reported is 0 */
	COUNTER_CLAMPED = 38, /* packets forwarded with a lower window than they came with */
	COUNTER_HELD = 39, /* times that a window was held */
	COUNTER_UNTOLD = 40, /* plus a reason: refused packets that no refusal record tells of, refusal_rate was used up */
	COUNTER_TOLD = 72, /* plus a reason: of these, the packets that user space has put on record; none of the program's */
	COUNTER_COUNT = 104,
};

/* The maps, in the order in which the program numbers them. */
enum map {
	MAP_LEASES = 0,     /* hash: u8[16] agent's address -> struct lease */
	MAP_RULES = 1,      /* LPM trie: struct rule_key -> struct rule */
	MAP_INTERFACES = 2, /* hash: u32 interface index -> u32 enum role */
	MAP_LOCALS = 3,     /* hash: u8[16] address of the gateway -> u32, any value */
	MAP_FLOWS = 4,      /* hash: struct flow_key -> struct tracked */
	MAP_COUNTERS = 5,   /* per-CPU array: u32 enum reason or enum counter -> u64 */
	MAP_REFUSALS = 6,   /* LRU hash: struct refusal_key -> struct refusal */
	MAP_SETTINGS = 7,   /* array of one struct settings */
	MAP_RING = 8,       /* the ring */
	MAP_SCRATCH = 9,    /* per-CPU array of one: the program's own */
	MAP_META = 10,      /* array of one struct meta; not used by the program */
	MAP_QUOTAS = 11,    /* hash: struct owner -> struct quota */
	MAP_RELEASED = 12,  /* hash: struct owner -> u64 flows that were taken out of map flows since .opened began; not
			     * written by the program */
	MAP_BUDGET = 13,    /* array of one struct budget */
	MAP_NETWORKS = 14,  /* LPM trie: struct network_key -> u32 index of the interface that the routes lead to, 0: several */
	MAP_HELD = 15,      /* hash: struct flow_key, as the packet's sender sends -> struct held; user space takes them out */
	MAP_PRESSURE = 16,  /* array of one struct pressure */
	MAP_RELAYS = 17,    /* hash: u32 slot below RELAYS_MAX -> struct relay; not written by the program */
	MAP_LEGS = 18,      /* hash: struct flow_key, as the relay sends -> struct leg; relays put them in and take them out */
	MAP_ANSWERS = 19,   /* a second ring: struct answer, DNS answers of recorded flows, while rules name hosts */
	MAP_COUNT = 20,
};

/* record.flags */
#define RECORD_F_VLAN 0x01     /* record.vlan holds the tag control information */
#define RECORD_F_GSO 0x02      /* a super-packet: its IP length may be 0, its checksums partial */
#define RECORD_F_FRAGMENT 0x04
#define RECORD_F_UNBOUND 0x08  /* opened by a rule without a lease */
#define RECORD_F_CUT 0x10      /* fewer packet bytes follow than the packet had (refusals only) */
#define RECORD_F_RELATED 0x20  /* an ICMP error about a known flow, whose addresses, ports and protocol the record bears,
				* in the direction in which the error travels; seq to payload are 0 */

#define RECORD_F_UNVERIFIED 0x40 /* TCP: the checksum is filled in, and no device has verified it */

/* skb->mark, set on arrival; the interlock forwards MARK_RECORDED only, and answers MARK_REFUSED. What bears MARK_STEERED
 * is delivered to a relay's socket by a routing rule, and never forwarded: its hop limit is used up. */
#define MARK_RECORDED 0x56420001
#define MARK_REFUSED 0x56420002
#define MARK_STEERED 0x56420003

/* The same for the gate (gate.c): skb->tc_classid on arrival, which the kernel keeps as skb->tc_index until the packet
 * leaves, and which nftables cannot set. */
#define CLASS_RECORDED 0x5642

struct record { /* 112 bytes */
	__u8 version; /* WIRE_ABI */
	__u8 kind;
	__u8 lane;
	__u8 side; /* who sent the packet */
	__u8 family; /* 4 or 6; 0 unknown */
	__u8 protocol; /* IP protocol number of the transport */
	__u8 reason;
	__u8 flags;
	__u32 ifindex;
	__u32 length; /* bytes that follow this header */
	__u64 time;
	__u64 lease; /* 0: none */
	__u64 flow; /* time of the flow's first packet; with the addresses and ports it names the flow. 0: none */
	__u64 count; /* refusals: packets since the last record of this source and reason */
	__u8 source[16];
	__u8 destination[16];
	__u16 source_port;
	__u16 destination_port;
	__u32 seq;
	__u32 ack;
	__u16 window;
	__u8 tcp_flags;
	__u8 reserved;
	__u32 payload; /* transport payload bytes */
	__u16 gso_size; /* of a UDP super-packet: the payload is datagrams of this length, the last may be shorter */
	__u16 gso_segs;
	__u16 header; /* bytes from the IP header to the transport payload */
	__u16 vlan;
	__u32 spare;
};

#define ANSWER_BYTES 1232 /* the longest answer over UDP that needs no fragments (DNS flag day 2020) */

struct answer { /* 1344 bytes; in map answers */
	struct record record; /* .length: of the message */
	__u8 message[ANSWER_BYTES];
};

struct side_state { /* 48 bytes, one per direction, counted after recording */
	__u64 packets;
	__u64 bytes; /* transport payload, retransmissions included */
	__u64 refused; /* packets */
	__u64 refused_bytes;
	__u32 isn; /* sequence number of the SYN, or of the first segment seen */
	__u32 next; /* highest sequence number sent, plus one */
	__u32 acked; /* highest acknowledgement that the other side sent for this side's bytes */
	__u8 flags; /* SIDE_F_* */
	__u8 scale; /* TCP window scale of its SYN */
	__u16 reserved;
};

#define SIDE_F_SYN 0x01
#define SIDE_F_FIN 0x02
#define SIDE_F_RST 0x04
#define SIDE_F_ACKED 0x08 /* .acked is valid */
#define SIDE_F_SEEN 0x10  /* .isn and .next are valid */

enum flow_end { FLOW_LIVE = 0, FLOW_FIN = 1, FLOW_RST = 2, FLOW_IDLE = 3, FLOW_CUT = 4 };

/* ICMP echo: the client's port is the identifier, the server's is 0. */
struct flow_key { /* 40 bytes, as the client sends */
	__u8 source[16];
	__u8 destination[16];
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 family;
	__u16 reserved;
};

struct flow { /* 128 bytes */
	__u64 start;
	__u64 last;
	__u64 lease;
	__u32 rule;
	__u8 lane;
	__u8 end; /* enum flow_end */
	__u8 flags; /* RECORD_F_UNBOUND */
	__u8 reported; /* 1: its FLOW_END record is in the ring; 0 with .end set: there was no room, user space reports it */
	struct side_state sides[2];
};

/* The receive window that a side advertises, and what it sends itself. Edges are sequence numbers of the other side. */
struct window { /* 24 bytes */
	__u32 edge;     /* the highest right edge that was forwarded */
	__u32 promised; /* the right edge of its acknowledgement in map held */
	__u32 tick;     /* when .recent began, in units of 2^28 ns */
	__u32 recent;   /* payload bytes that it sent in this tick */
	__u32 before;   /* and in the one before */
	__u16 mss;      /* option of its SYN, or the protocol's default; 0: no SYN was seen */
	__u8 flags;     /* WINDOW_F_* */
	__u8 reserved;
};

#define WINDOW_F_SCALED 0x01 /* its SYN offered a window scale */
#define WINDOW_F_EDGE 0x02   /* .edge is a sequence number; else it counts from what the first acknowledgement says */
#define WINDOW_F_HELD 0x04   /* an acknowledgement was put into map held */

struct tracked { /* 184 bytes; the value of map flows. User space reads the flow */
	struct flow flow;
	struct window windows[2];
	__u32 rules; /* settings.rules when map rules let the flow pass, by .flow.rule; plus 1 if that one is unbound */
	__u32 ifindex; /* behind which the flow's client was when it opened it */
};

#define HELD_BYTES 120

/* The last acknowledgement of a side whose window is held. */
struct held { /* 132 bytes */
	__u32 seq;       /* with which it is to be sent again: behind what it carried */
	__u16 window;    /* and its window field then */
	__u16 length;    /* of the headers */
	__u16 transport; /* offset of the TCP header in them */
	__u16 reserved;
	__u8 header[HELD_BYTES]; /* from the IP header to the end of the TCP options, as they arrived */
};

struct pressure { /* 24 bytes; map pressure. Ticks as in struct window */
	__u32 tick;    /* when .now began */
	__u32 now;     /* sides that sent much in this tick */
	__u32 before;  /* and in those before, fading */
	__u32 pressed; /* the last tick in which the ring was fuller than settings.clamp */
	__u64 held;    /* how often something was put into map held */
};

struct lease { /* 32 bytes; map leases, keyed by the agent's address */
	__u64 id; /* never 0 */
	__u64 expires;
	__u32 ifindex; /* interface that the agent is behind; 0: any. The same address behind another one has no lease */
	__u8 link[6]; /* the agent's link-layer address; zeros: any */
	__u16 reserved;
	__u32 spare;
};

/* Map rules, a longest-prefix-match trie. prefixlen counts all bits before the address (32) plus the network's; IPv4
 * networks are v4-mapped, so 96 bits longer: 10.0.0.0/8 has prefixlen 32 + 96 + 8 and prefix 96 + 8.
 * A port or protocol of 0 means any: the program looks up (protocol, port), (protocol, 0) and (0, 0) and takes the
 * longest network; among equals the most specific. Protocol is the IP protocol number: ICMP is 1 in family 4, 58 in
 * family 6. Echo is opened by a rule of its own protocol only: to it, (0, 0) can refuse but not open. */
struct rule_key { /* 24 bytes */
	__u32 prefixlen;
	__u8 family;
	__u8 protocol;
	__u16 port; /* network order */
	__u8 network[16];
};

struct rule { /* 8 bytes */
	__u32 id; /* its number in the configuration, from 1 */
	__u8 lane;
	__u8 unbound; /* 1: no lease needed */
	__u8 prefix; /* length of the network, 0 to 128 */
	__u8 reserved;
};

struct refusal_key { /* 24 bytes */
	__u8 source[16];
	__u32 reason;
	__u32 reserved;
};

/* Map refusals. An entry with a count that is older than the interval is a burst that ended: user space reports it. */
struct refusal { /* 16 bytes */
	__u64 recorded; /* time of the last record; 0: none */
	__u64 count; /* packets since */
};

/* Who answers for a flow: its lease (the number, then eight bytes 0xff), or the network of a client without one (/24 or
 * /64, the rest zeros). All zeros: everybody together. */
struct owner { /* 16 bytes */
	__u8 name[16];
};

/* Map quotas. Flows that an owner has in map flows: .opened less its value in map released. */
struct quota { /* 32 bytes */
	__u64 opened;
	__u64 mark;   /* position in the ring at which .since began */
	__u64 before; /* bytes recorded before .mark that may still be in the ring */
	__u64 since;  /* bytes recorded since */
};

struct network_key { /* 20 bytes; prefixlen as in struct rule_key, without the 32 */
	__u32 prefixlen;
	__u8 network[16];
};

struct budget { /* 16 bytes; map budget: refusal records of the present second */
	__u64 second; /* when it began */
	__u64 used;
};

struct meta { /* 56 bytes; map meta, one element: what the pinned set was made of */
	__u32 abi; /* WIRE_ABI */
	__u32 reserved;
	__u8 ring[16]; /* random, made with the ring */
	__u8 program[32]; /* SHA-256 of the pinned program's sources */
};

#define RELAYS_MAX 64

/* A relay process that takes connections: its listeners are bound to 0.0.0.0 and [::] at one port, with IP_TRANSPARENT and
 * IPV6_TRANSPARENT, without SO_REUSEPORT (bpf_sk_assign refuses such sockets before kernel 6.6). */
struct relay { /* 16 bytes */
	__u64 worker; /* names the process: its start in clock ticks since boot << 22 | its number */
	__u16 port;
	__u16 reserved[3];
};

/* A connection that a relay makes to a server. The relay puts it in before its SYN leaves. */
struct leg { /* 128 bytes */
	__u64 start; /* of its first packet; 0: there was none */
	__u64 last;
	__u64 worker; /* as in struct relay */
	__u32 flags; /* LEG_F_* */
	__u32 reserved;
	struct side_state sides[2]; /* the relay is the client */
};

#define LEG_F_TRANSPARENT 0x01 /* its source is the agent's own address: what comes back is steered to the relay's socket */
#define LEG_F_UNBOUND 0x02     /* an agent that is the server needs no lease of its own */

#define PORTS_MAX 8
#define PROXIES_MAX 8

struct settings { /* 72 bytes; map settings, one element */
	__u32 stalled; /* not 0: refuse everything, the journal is full */
	__u32 refusal_rate; /* refusal records in a second, of all sources together */
	__u64 refusal_interval; /* ns between two refusal records of one source and reason */
	__u32 max_flows; /* entries of map flows */
	__u32 max_flows_per_lease;
	__u16 ports[PORTS_MAX]; /* TCP ports of the gateway that are for agents; 0: none */
	__u32 ring; /* its bytes */
	__u32 clamp; /* bytes in the ring above which windows are lowered; 0: never */
	__u32 rules; /* an even number, another one for another content of map rules, set after it; 0: flows remember nothing */
	__u32 names; /* not 0: rules name hosts, and DNS answers tell of their addresses */
	__u16 proxies[PROXIES_MAX]; /* TCP ports of the gateway where relays are an explicit proxy for agents; 0: none */
};

#endif
