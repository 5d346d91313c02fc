/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rtnetlink from tables (netlink_rows.c), which are read in both directions. The kernel handles all
 * messages of one sendmsg(2) in order before that returns, so what belongs together travels
 * together.
 */
#include "netlink_rows.h"
#include "sys.h"

#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 32
#define MOST_MESSAGE 512
#define RECEIVE_SIZE 32768

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
	err = put_rows(w, rt, row->how == OPTIONS ? nsb_rt_options(rt) : row + 1);
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
		row = row->how == NEST ? nsb_rt_after(row) : row + 1;
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
	const struct object *object = &nsb_rt_objects[rt->object];
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
			row = row->how == NEST ? nsb_rt_after(row) : row + 1;
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
	size_t header = NLMSG_ALIGN(nsb_rt_objects[object].header);
	size_t size = message->nlmsg_len - NLMSG_HDRLEN;
	const uint8_t *data = NLMSG_DATA(message);

	if (message->nlmsg_type != nsb_rt_objects[object].message)
		return -EPROTO;
	if (size < header)
		return -EPROTO;
	memset(rt, 0, sizeof(*rt));
	rt->object = object;
	take_header(rt, data);
	take_rows(rt, nsb_rt_objects[object].rows, data + header, size - header);
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
