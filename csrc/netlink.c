/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One table for each kind of object says which attribute holds which field of struct nsb_rt;
 * it is read in both directions. The kernel handles all messages of one sendmsg(2) in order
 * before that returns, so what belongs together travels together.
 */
#include "netlink.h"
#include "sys.h"

#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 32
#define MOST_MESSAGE 512
#define RECEIVE_SIZE 32768
#define TICK_NS 64 /* PSCHED_TICKS2NS(1) */

enum how {
	NUMBER,	 /* size bytes, in the machine's order */
	INDEX,	 /* uint32, where ~0 stands for 0 */
	NETNS,	 /* a descriptor + 1 */
	STRING,	 /* ends with NUL, has at most size bytes */
	ADDRESS, /* address_size bytes */
	BYTES,	 /* size bytes */
	SEEN,	 /* BYTES of answers alone */
	NEST,	 /* the rows up to END, or nothing when they say nothing */
	OPTIONS, /* NEST of the rows that belong to the type */
	MADE,	 /* an attribute that is worked out of several fields */
	HEADER,	 /* the same, without the attribute's header */
	END,
};

typedef size_t make_fn(const struct nsb_rt *rt, void *out);

struct row {
	uint16_t type;
	uint8_t how;
	uint8_t size;
	uint16_t at;
	make_fn *make;
};

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

static const struct object {
	uint16_t message; /* RTM_NEW…; the next are RTM_DEL… and RTM_GET… */
	uint16_t header;
	const struct row *rows;
} objects[NSB_RT_OBJECTS] = {
	[NSB_RT_LINK] = { RTM_NEWLINK, sizeof(struct ifinfomsg), link_rows },
	[NSB_RT_ADDRESS] = { RTM_NEWADDR, sizeof(struct ifaddrmsg), address_rows },
	[NSB_RT_ROUTE] = { RTM_NEWROUTE, sizeof(struct rtmsg), route_rows },
	[NSB_RT_NEIGHBOUR] = { RTM_NEWNEIGH, sizeof(struct ndmsg), neighbour_rows },
	[NSB_RT_QDISC] = { RTM_NEWQDISC, sizeof(struct tcmsg), queue_rows },
	[NSB_RT_CLASS] = { RTM_NEWTCLASS, sizeof(struct tcmsg), queue_rows },
};
static const struct {
	uint8_t offset;
	uint16_t flags;
} verbs[] = {
	[NSB_RT_ADD] = { 0, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL },
	[NSB_RT_REPLACE] = { 0, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE },
	[NSB_RT_SET] = { 0, NLM_F_ACK },
	[NSB_RT_DELETE] = { 1, NLM_F_ACK },
	[NSB_RT_GET] = { 2, 0 },
	[NSB_RT_DUMP] = { 2, NLM_F_DUMP },
};
/* clang-format on */

static const struct row *options_of(const struct nsb_rt *rt)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (strncmp(rt->type, options[i].type, sizeof(rt->type)) == 0)
			return options[i].rows;
	return nothing;
}

/* After the END of the nest that begins at row. */
static const struct row *after(const struct row *row)
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

/* ------------------------------------------------------------ requests */

struct writer {
	uint8_t *base;
	size_t used, room;
};

static void *reserve(struct writer *w, size_t size)
{
	size_t whole = NLMSG_ALIGN(size);
	uint8_t *at = w->base + w->used;

	if (whole > w->room - w->used)
		return NULL;
	memset(at, 0, whole);
	w->used += whole;
	return at;
}

static int put(struct writer *w, uint16_t type, const void *data, size_t size)
{
	struct rtattr *attr = reserve(w, RTA_LENGTH(size));

	if (!attr)
		return -EMSGSIZE;
	attr->rta_type = type;
	attr->rta_len = (uint16_t)RTA_LENGTH(size);
	memcpy(RTA_DATA(attr), data, size);
	return 0;
}

static bool is_zero(const uint8_t *data, size_t size)
{
	while (size)
		if (data[--size])
			return false;
	return true;
}

static int put_rows(struct writer *w, const struct nsb_rt *rt, const struct row *row);

static int put_nest(struct writer *w, const struct nsb_rt *rt, const struct row *row)
{
	size_t start = w->used;
	struct rtattr *nest = reserve(w, RTA_LENGTH(0));
	int err;

	if (!nest)
		return -EMSGSIZE;
	err = put_rows(w, rt, row->how == OPTIONS ? options_of(rt) : row + 1);
	nest->rta_type = row->type;
	nest->rta_len = (uint16_t)(w->used - start);
	if (w->used == start + RTA_LENGTH(0))
		w->used = start;
	return err;
}

static int put_made(struct writer *w, const struct nsb_rt *rt, const struct row *row)
{
	uint32_t made[64];
	size_t size = row->make(rt, made);
	void *at;

	if (size == 0)
		return 0;
	if (row->how == MADE)
		return put(w, row->type, made, size);
	at = reserve(w, size);
	if (!at)
		return -EMSGSIZE;
	memcpy(at, made, size);
	return 0;
}

static int put_field(struct writer *w, const struct nsb_rt *rt, const struct row *row)
{
	const uint8_t *field = (const uint8_t *)rt + row->at;
	size_t size = row->size;
	uint32_t number;

	if (row->how == SEEN || is_zero(field, size))
		return 0;
	if (row->how == INDEX || row->how == NETNS) {
		memcpy(&number, field, sizeof(number));
		number = row->how == NETNS ? number - 1 : number == UINT32_MAX ? 0 : number;
		return put(w, row->type, &number, sizeof(number));
	}
	if (row->how == STRING)
		size = strnlen((const char *)field, size - 1) + 1;
	else if (row->how == ADDRESS)
		size = rt->address_size;
	return put(w, row->type, field, size);
}

static int put_rows(struct writer *w, const struct nsb_rt *rt, const struct row *row)
{
	while (row->how != END) {
		bool nest = row->how == NEST || row->how == OPTIONS;
		int err;

		if (nest)
			err = put_nest(w, rt, row);
		else if (row->how == MADE || row->how == HEADER)
			err = put_made(w, rt, row);
		else
			err = put_field(w, rt, row);
		if (err < 0)
			return err;
		row = row->how == NEST ? after(row) : row + 1;
	}
	return 0;
}

static void put_header(const struct nsb_rt *rt, void *out)
{
	switch (rt->object) {
	case NSB_RT_LINK:
		*(struct ifinfomsg *)out = (struct ifinfomsg){ .ifi_family = rt->family,
							       .ifi_index = rt->index,
							       .ifi_flags = rt->flags,
							       .ifi_change = rt->change };
		break;
	case NSB_RT_ADDRESS:
		*(struct ifaddrmsg *)out = (struct ifaddrmsg){ .ifa_family = rt->family,
							       .ifa_prefixlen = rt->prefix,
							       .ifa_scope = rt->scope,
							       .ifa_index = (uint32_t)rt->index };
		break;
	case NSB_RT_ROUTE:
		*(struct rtmsg *)out = (struct rtmsg){
			.rtm_family = rt->family,
			.rtm_dst_len = rt->prefix,
			.rtm_table = rt->table > 255 ? RT_TABLE_UNSPEC : RT_TABLE_MAIN,
			.rtm_protocol = RTPROT_STATIC,
			.rtm_scope = rt->scope,
			.rtm_type = RTN_UNICAST,
		};
		break;
	case NSB_RT_NEIGHBOUR:
		*(struct ndmsg *)out = (struct ndmsg){ .ndm_family = rt->family,
						       .ndm_ifindex = rt->index,
						       .ndm_state = (uint16_t)rt->flags };
		break;
	default:
		*(struct tcmsg *)out = (struct tcmsg){ .tcm_ifindex = rt->index,
						       .tcm_parent = rt->parent,
						       .tcm_handle = rt->handle };
	}
}

/* One message; its size, or -errno. */
int nsb_rt_encode(const struct nsb_rt *rt, uint32_t seq, void *buf, size_t room)
{
	struct writer w = { buf, 0, room };
	struct nlmsghdr *message = reserve(&w, NLMSG_HDRLEN);
	const struct object *object = &objects[rt->object];
	void *header;
	int err;

	if (rt->object >= NSB_RT_OBJECTS || rt->verb >= sizeof(verbs) / sizeof(verbs[0]))
		return -EINVAL;
	if (rt->address_size > sizeof(rt->address))
		return -EINVAL;
	header = message ? reserve(&w, object->header) : NULL;
	if (!header)
		return -EMSGSIZE;
	put_header(rt, header);
	err = put_rows(&w, rt, object->rows);
	if (err < 0)
		return err;
	message->nlmsg_len = (uint32_t)w.used;
	message->nlmsg_type = (uint16_t)(object->message + verbs[rt->verb].offset);
	message->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | verbs[rt->verb].flags);
	message->nlmsg_seq = seq;
	return (int)w.used;
}

/* ------------------------------------------------------------ answers */

static void take_rows(struct nsb_rt *rt, const struct row *rows, const uint8_t *at, size_t left)
{
	const struct rtattr *attr = (const void *)at;

	for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left)) {
		uint16_t type = attr->rta_type & (uint16_t)NLA_TYPE_MASK;
		size_t size = RTA_PAYLOAD(attr);
		const struct row *row = rows;

		while (row->how != END && (row->type != type || row->how == HEADER))
			row = row->how == NEST ? after(row) : row + 1;
		if (row->how == NEST)
			take_rows(rt, row + 1, RTA_DATA(attr), size);
		else if (row->how <= SEEN)
			memcpy((uint8_t *)rt + row->at, RTA_DATA(attr),
			       size < row->size ? size : row->size);
	}
}

static void take_header(struct nsb_rt *rt, const void *header)
{
	const struct ifinfomsg *link = header;
	const struct ifaddrmsg *address = header;
	const struct rtmsg *route = header;
	const struct ndmsg *neighbour = header;
	const struct tcmsg *queue = header;

	rt->family = link->ifi_family; /* the first byte of all of them */
	rt->address_size = rt->family == AF_INET ? 4 : 16;
	switch (rt->object) {
	case NSB_RT_LINK:
		rt->index = link->ifi_index;
		rt->flags = link->ifi_flags;
		break;
	case NSB_RT_ADDRESS:
		rt->index = (int32_t)address->ifa_index;
		rt->prefix = address->ifa_prefixlen;
		rt->scope = address->ifa_scope;
		break;
	case NSB_RT_ROUTE:
		rt->prefix = route->rtm_dst_len;
		rt->scope = route->rtm_scope;
		rt->table = route->rtm_table;
		rt->flags = route->rtm_type;
		break;
	case NSB_RT_NEIGHBOUR:
		rt->index = neighbour->ndm_ifindex;
		rt->flags = neighbour->ndm_state;
		break;
	default:
		rt->index = queue->tcm_ifindex;
		rt->parent = queue->tcm_parent;
		rt->handle = queue->tcm_handle;
	}
}

static int take_message(struct nsb_rt *rt, uint8_t object, const struct nlmsghdr *message)
{
	size_t header = NLMSG_ALIGN(objects[object].header);
	size_t size = message->nlmsg_len - NLMSG_HDRLEN;
	const uint8_t *data = NLMSG_DATA(message);

	if (message->nlmsg_type != objects[object].message)
		return -EPROTO;
	if (size < header)
		return -EPROTO;
	memset(rt, 0, sizeof(*rt));
	rt->object = object;
	take_header(rt, data);
	take_rows(rt, objects[object].rows, data + header, size - header);
	rt->name[sizeof(rt->name) - 1] = rt->type[sizeof(rt->type) - 1] = 0;
	rt->alias[sizeof(rt->alias) - 1] = 0;
	return 0;
}

/* The errno of an NLMSG_ERROR, 0 of a plain acknowledgement; and what the kernel says of it. */
static int take_error(const struct nlmsghdr *message, struct nsb_rt_fault *fault)
{
	const struct nlmsgerr *error = NLMSG_DATA(message);
	size_t skip = sizeof(*error), size = message->nlmsg_len - NLMSG_HDRLEN;
	const struct rtattr *attr;
	size_t left;

	if (size < sizeof(*error))
		return -EPROTO;
	if (!(message->nlmsg_flags & NLM_F_CAPPED))
		skip += NLMSG_ALIGN(error->msg.nlmsg_len - NLMSG_HDRLEN);
	if (error->error == 0 || !(message->nlmsg_flags & NLM_F_ACK_TLVS) || skip > size)
		return error->error;
	attr = (const void *)((const uint8_t *)error + skip);
	for (left = size - skip; RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
		if (attr->rta_type == NLMSGERR_ATTR_MSG) {
			size_t length = RTA_PAYLOAD(attr);

			if (length > sizeof(fault->text) - 1)
				length = sizeof(fault->text) - 1;
			memcpy(fault->text, RTA_DATA(attr), length);
		}
	return error->error;
}

static long receive(int fd, void *buf, size_t size)
{
	long got;

	do
		got = nsb_sys6(__NR_recvfrom, fd, buf, size, MSG_TRUNC, NULL, NULL);
	while (got == -EINTR);
	return got > (long)size ? -EMSGSIZE : got;
}

static long transmit(int fd, const void *buf, size_t size)
{
	long sent;

	do
		sent = nsb_sys6(__NR_sendto, fd, buf, size, MSG_NOSIGNAL, NULL, 0);
	while (sent == -EINTR);
	return sent;
}

static uint32_t next_seq(unsigned int count)
{
	static uint32_t seq = 1;

	return __atomic_fetch_add(&seq, count, __ATOMIC_RELAXED);
}

/* Waits for all acknowledgements of one batch; the first error among them. */
static int await_acks(int fd, uint32_t first, unsigned int count, struct nsb_rt_fault *fault)
{
	uint32_t space[RECEIVE_SIZE / 4];
	unsigned int seen = 0;
	int err = 0;

	while (seen < count) {
		long got = receive(fd, space, sizeof(space));
		size_t left = got < 0 ? 0 : (size_t)got;
		struct nlmsghdr *message = (void *)space;

		if (got <= 0)
			return got ? (int)got : -EPROTO;
		for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
			struct nsb_rt_fault said = { .request = message->nlmsg_seq - first };
			int code;

			if (message->nlmsg_type != NLMSG_ERROR || said.request >= count)
				continue; /* of a call that was given up */
			seen++;
			code = take_error(message, &said);
			if (code < 0 && err == 0) {
				err = code;
				*fault = said;
			}
		}
	}
	return err;
}

/* Requests, in order; 0, or the error of the first that failed: later ones may have been done. */
int nsb_rt_talk(int fd, const struct nsb_rt *requests, unsigned int count,
		struct nsb_rt_fault *fault)
{
	uint32_t space[BATCH * MOST_MESSAGE / 4];

	for (unsigned int done = 0; done < count;) {
		unsigned int batch = count - done < BATCH ? count - done : BATCH;
		uint32_t seq = next_seq(batch);
		size_t used = 0;
		int err = 0;

		for (unsigned int i = 0; i < batch; i++) {
			err = nsb_rt_encode(&requests[done + i], seq + i, (uint8_t *)space + used,
					    sizeof(space) - used);
			fault->request = done + i;
			if (err < 0)
				return err;
			used += (size_t)err;
		}
		fault->request = 0;
		err = (int)transmit(fd, space, used);
		if (err >= 0)
			err = await_acks(fd, seq, batch, fault);
		fault->request += done;
		if (err < 0)
			return err;
		done += batch;
	}
	return 0;
}

/*
 * What there is, of GET or DUMP: how many, at most room. -EAGAIN: it changed meanwhile, -E2BIG:
 * there are more; in both cases nothing of it is left in the socket.
 */
int nsb_rt_dump(int fd, const struct nsb_rt *request, struct nsb_rt *found, unsigned int room,
		struct nsb_rt_fault *fault)
{
	uint32_t space[RECEIVE_SIZE / 4], seq = next_seq(1);
	bool done = false;
	unsigned int count = 0;
	int err = nsb_rt_encode(request, seq, space, sizeof(space));

	if (err > 0)
		err = (int)transmit(fd, space, (size_t)err);
	if (err < 0)
		return err;
	for (err = 0; !done;) {
		long got = receive(fd, space, sizeof(space));
		size_t left = got < 0 ? 0 : (size_t)got;
		struct nlmsghdr *message = (void *)space;

		if (got <= 0)
			return got ? (int)got : -EPROTO;
		for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
			if (message->nlmsg_seq != seq)
				continue;
			if (message->nlmsg_flags & NLM_F_DUMP_INTR)
				err = -EAGAIN;
			done = message->nlmsg_type == NLMSG_DONE ||
			       message->nlmsg_type == NLMSG_ERROR || request->verb == NSB_RT_GET;
			if (message->nlmsg_type == NLMSG_ERROR)
				err = take_error(message, fault);
			else if (message->nlmsg_type == NLMSG_DONE)
				break;
			else if (count == room)
				err = -E2BIG;
			else if (take_message(&found[count], request->object, message) == 0)
				count++;
		}
	}
	return err < 0 ? err : (int)count;
}
