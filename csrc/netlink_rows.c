/* SPDX-License-Identifier: Apache-2.0 */
/* One table for each kind of object, an attribute a row. */
#include "netlink_rows.h"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <string.h>

#define TICK_NS 64 /* PSCHED_TICKS2NS(1) */

#define ROW(type, how, field)                                                                      \
	{                                                                                          \
		type, how, sizeof(((struct nsb_rt *)0)->field), offsetof(struct nsb_rt, field),    \
			NULL                                                                       \
	}
#define MAKE(type, how, make)                                                                      \
	{                                                                                          \
		type, how, 0, 0, make                                                              \
	}
#define MARK(type, how)                                                                            \
	{                                                                                          \
		type, how, 0, 0, NULL                                                              \
	}

/* ------------------------------------------------------------ what is worked out */

static size_t peer_header(const struct nsb_rt *rt, void *out)
{
	/* Not up: this end is made before it has another, and could not be. */
	*(struct ifinfomsg *)out = (struct ifinfomsg){ .ifi_index = rt->peer_index };
	return rt->peer[0] ? sizeof(struct ifinfomsg) : 0;
}

/* Without a rate table: the kernel needs none when it is told the link layer. */
static struct tc_ratespec rate_spec(uint64_t rate)
{
	return (struct tc_ratespec){
		.linklayer = TC_LINKLAYER_ETHERNET,
		.rate = rate > UINT32_MAX ? UINT32_MAX : (uint32_t)rate,
	};
}

/* How long so many bytes take, in the scheduler's ticks. */
static uint32_t ticks(uint64_t bytes, uint64_t rate)
{
	uint64_t ns = rate ? bytes * 1000000000ULL / rate : 0;

	return ns / TICK_NS > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / TICK_NS);
}

static size_t tbf_parms(const struct nsb_rt *rt, void *out)
{
	struct tc_tbf_qopt *opt = out;

	*opt = (struct tc_tbf_qopt){ .rate = rate_spec(rt->rate),
				     .limit = rt->limit,
				     .buffer = ticks(rt->burst, rt->rate) };
	return sizeof(*opt);
}

static size_t htb_init(const struct nsb_rt *rt, void *out)
{
	struct tc_htb_glob *glob = out;

	*glob = (struct tc_htb_glob){ .version = 3, .rate2quantum = 10, .defcls = rt->other };
	return rt->object == NSB_RT_QDISC ? sizeof(*glob) : 0;
}

static size_t htb_parms(const struct nsb_rt *rt, void *out)
{
	uint64_t ceil = rt->ceil ? rt->ceil : rt->rate;
	struct tc_htb_opt *opt = out;

	*opt = (struct tc_htb_opt){ .rate = rate_spec(rt->rate),
				    .ceil = rate_spec(ceil),
				    .buffer = ticks(rt->burst, rt->rate),
				    .cbuffer = ticks(rt->burst, ceil),
				    .quantum = 1514,
				    .prio = rt->priority };
	return rt->object == NSB_RT_CLASS ? sizeof(*opt) : 0;
}

static size_t netem_header(const struct nsb_rt *rt, void *out)
{
	struct tc_netem_qopt *opt = out;

	*opt = (struct tc_netem_qopt){ .latency = rt->delay / TICK_NS,
				       .jitter = rt->jitter / TICK_NS,
				       .loss = rt->loss,
				       .limit = rt->limit ? rt->limit : 1000 };
	return sizeof(*opt);
}

static size_t vxlan_group(const struct nsb_rt *rt, void *out)
{
	memcpy(out, rt->address, rt->address_size);
	return rt->address_size == 4 ? 4 : 0;
}

static size_t vxlan_group6(const struct nsb_rt *rt, void *out)
{
	memcpy(out, rt->address, rt->address_size);
	return rt->address_size == 16 ? 16 : 0;
}

/* ------------------------------------------------------------ tables */

/* clang-format off */
static const struct row veth[] = {
	MARK(VETH_INFO_PEER, NEST),
	MAKE(0, HEADER, peer_header),
	ROW(IFLA_IFNAME, STRING, peer),
	ROW(IFLA_ADDRESS, BYTES, peer_mac),
	ROW(IFLA_MTU, NUMBER, mtu),
	ROW(IFLA_NET_NS_FD, NETNS, peer_netns),
	ROW(IFLA_NET_NS_PID, NUMBER, peer_netns_pid),
	MARK(0, END),
	MARK(0, END),
};
static const struct row macvlan[] = {
	ROW(IFLA_MACVLAN_MODE, NUMBER, id),
	MARK(0, END),
};
static const struct row vxlan[] = {
	ROW(IFLA_VXLAN_ID, NUMBER, id),
	ROW(IFLA_VXLAN_PORT, NUMBER, port),
	ROW(IFLA_VXLAN_LINK, INDEX, link),
	MAKE(IFLA_VXLAN_GROUP, MADE, vxlan_group),
	MAKE(IFLA_VXLAN_GROUP6, MADE, vxlan_group6),
	MARK(0, END),
};
static const struct row tbf[] = {
	MAKE(TCA_TBF_PARMS, MADE, tbf_parms),
	ROW(TCA_TBF_BURST, NUMBER, burst),
	ROW(TCA_TBF_RATE64, NUMBER, rate),
	MARK(0, END),
};
static const struct row htb[] = {
	MAKE(TCA_HTB_INIT, MADE, htb_init),
	MAKE(TCA_HTB_PARMS, MADE, htb_parms),
	ROW(TCA_HTB_RATE64, NUMBER, rate),
	ROW(TCA_HTB_CEIL64, NUMBER, ceil),
	MARK(0, END),
};
static const struct row netem[] = {
	MAKE(0, HEADER, netem_header),
	MARK(0, END),
};
static const struct row nothing[] = {
	MARK(0, END),
};

static const struct {
	const char *type;
	const struct row *rows;
} options[] = {
	{ "veth", veth }, { "macvlan", macvlan }, { "vxlan", vxlan },
	{ "tbf", tbf }, { "htb", htb }, { "netem", netem },
};

static const struct row link_rows[] = {
	ROW(IFLA_IFNAME, STRING, name),
	ROW(IFLA_IFALIAS, STRING, alias),
	ROW(IFLA_ADDRESS, BYTES, mac),
	ROW(IFLA_MTU, NUMBER, mtu),
	ROW(IFLA_GROUP, NUMBER, group),
	ROW(IFLA_LINK, INDEX, link),
	ROW(IFLA_MASTER, INDEX, master),
	ROW(IFLA_NET_NS_FD, NETNS, netns),
	ROW(IFLA_NET_NS_PID, NUMBER, netns_pid),
	ROW(IFLA_STATS64, SEEN, counts),
	MARK(IFLA_LINKINFO, NEST),
	ROW(IFLA_INFO_KIND, STRING, type),
	MARK(IFLA_INFO_DATA, OPTIONS),
	ROW(IFLA_INFO_SLAVE_KIND, STRING, slave),
	MARK(IFLA_INFO_SLAVE_DATA, NEST),
	ROW(IFLA_BRPORT_MODE, NUMBER, hairpin),
	MARK(0, END),
	MARK(0, END),
	MARK(0, END),
};
static const struct row address_rows[] = {
	ROW(IFA_ADDRESS, ADDRESS, address),
	ROW(IFA_LOCAL, ADDRESS, address), /* after it: of a point-to-point link, the own one */
	ROW(IFA_BROADCAST, ADDRESS, gateway),
	ROW(IFA_FLAGS, NUMBER, flags),
	MARK(0, END),
};
static const struct row route_rows[] = {
	ROW(RTA_DST, ADDRESS, address),
	ROW(RTA_GATEWAY, ADDRESS, gateway),
	ROW(RTA_PREFSRC, ADDRESS, source),
	ROW(RTA_OIF, NUMBER, index),
	ROW(RTA_PRIORITY, NUMBER, metric),
	ROW(RTA_TABLE, NUMBER, table),
	MARK(0, END),
};
static const struct row neighbour_rows[] = {
	ROW(NDA_DST, ADDRESS, address),
	ROW(NDA_LLADDR, BYTES, mac),
	MARK(0, END),
};
static const struct row queue_rows[] = {
	ROW(TCA_KIND, STRING, type),
	MARK(TCA_OPTIONS, OPTIONS),
	ROW(TCA_STATS, SEEN, queue),
	MARK(0, END),
};

const struct object nsb_rt_objects[NSB_RT_OBJECTS] = {
	[NSB_RT_LINK] = { RTM_NEWLINK, sizeof(struct ifinfomsg), link_rows },
	[NSB_RT_ADDRESS] = { RTM_NEWADDR, sizeof(struct ifaddrmsg), address_rows },
	[NSB_RT_ROUTE] = { RTM_NEWROUTE, sizeof(struct rtmsg), route_rows },
	[NSB_RT_NEIGHBOUR] = { RTM_NEWNEIGH, sizeof(struct ndmsg), neighbour_rows },
	[NSB_RT_QDISC] = { RTM_NEWQDISC, sizeof(struct tcmsg), queue_rows },
	[NSB_RT_CLASS] = { RTM_NEWTCLASS, sizeof(struct tcmsg), queue_rows },
};
/* clang-format on */

const struct row *nsb_rt_options(const struct nsb_rt *rt)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (strncmp(rt->type, options[i].type, sizeof(rt->type)) == 0)
			return options[i].rows;
	return nothing;
}

const struct row *nsb_rt_after(const struct row *row)
{
	int depth = 1;

	while (depth) {
		row++;
		if (row->how == NEST || row->how == OPTIONS)
			depth++;
		else if (row->how == END)
			depth--;
	}
	return row + 1;
}
