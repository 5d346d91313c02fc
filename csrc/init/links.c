/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The links that an owner made in the launcher's network namespace: an alias on each says whose
 * it is. Those with an end in a sandbox's network go with that; bridges would stay.
 */
#include "init.h"

#include <linux/rtnetlink.h>
#include <sys/socket.h>

#define MOST 256 /* a round */
#define ROUNDS 256

static char buf[16384] __attribute__((aligned(8)));

static long ask(int fd, uint16_t type, uint16_t flags, uint32_t seq, int index)
{
	struct {
		struct nlmsghdr head;
		struct ifinfomsg link;
	} message = {
		.head = { .nlmsg_len = sizeof(message),
			  .nlmsg_type = type,
			  .nlmsg_flags = flags,
			  .nlmsg_seq = seq },
		.link = { .ifi_index = index },
	};

	return nsb_sys6(__NR_sendto, fd, &message, sizeof(message), 0, NULL, 0);
}

static bool is_ours(const struct nlmsghdr *message, const char *prefix)
{
	const struct ifinfomsg *link = NLMSG_DATA(message);
	const struct rtattr *attr = IFLA_RTA(link);
	size_t left = message->nlmsg_len - NLMSG_LENGTH(sizeof(*link));

	for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
		if (attr->rta_type == IFLA_IFALIAS)
			return nsb_str_starts(RTA_DATA(attr), prefix);
	return false;
}

/* How many were found, or -errno. */
static int find(int fd, uint32_t seq, const char *prefix, int *found)
{
	int count = 0;

	if (ask(fd, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, seq, 0) < 0)
		return -EIO;
	for (;;) {
		long got = sys_read(fd, buf, sizeof(buf));
		size_t left = got < 0 ? 0 : (size_t)got;
		const struct nlmsghdr *message = (const void *)buf;

		if (got <= 0)
			return -EIO;
		for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
			const struct ifinfomsg *link = NLMSG_DATA(message);

			if (message->nlmsg_seq != seq)
				continue; /* of a deletion: the other end had taken it along */
			if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR)
				return count;
			if (count < MOST && is_ours(message, prefix))
				found[count++] = link->ifi_index;
		}
	}
}

bool nsb_links_delete(const char *prefix)
{
	int found[MOST], count = 1;
	int fd = (int)nsb_sys3(__NR_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	for (uint32_t round = 1; fd >= 0 && count > 0 && round <= ROUNDS; round++) {
		count = find(fd, round, prefix, found);
		for (int i = 0; i < count; i++)
			ask(fd, RTM_DELLINK, NLM_F_REQUEST, 0, found[i]);
	}
	if (fd >= 0)
		sys_close(fd);
	return count <= 0;
}
