/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rtnetlink(7), on a socket that somebody opened in the network namespace in question: links,
 * addresses, routes, neighbours, queueing disciplines and their classes, as one flat struct.
 *
 * csrc/build_ffi.py reads the marked region verbatim, so it holds no preprocessor lines.
 */
#ifndef NSB_NETLINK_H
#define NSB_NETLINK_H

#include <stddef.h>
#include <stdint.h>

/* >>> cffi */
enum nsb_rt_object {
	NSB_RT_LINK,
	NSB_RT_ADDRESS,
	NSB_RT_ROUTE,
	NSB_RT_NEIGHBOUR,
	NSB_RT_QDISC,
	NSB_RT_CLASS,
	NSB_RT_OBJECTS,
};

enum nsb_rt_verb {
	NSB_RT_ADD, /* EEXIST when it is there */
	NSB_RT_REPLACE,
	NSB_RT_SET, /* ENODEV, ENOENT when it is not there */
	NSB_RT_DELETE,
	NSB_RT_GET, /* one of them */
	NSB_RT_DUMP,
};

/* A request, or an answer to a dump. What is 0 or empty is not said. */
struct nsb_rt {
	uint8_t object;
	uint8_t verb;
	uint8_t family;
	uint8_t address_size; /* 4 or 16: of address, gateway and source */
	int32_t index;	      /* of the link; 0: the one called name */
	uint32_t flags;	      /* IFF_*, IFA_F_*, NUD_* */
	uint32_t change;      /* which of flags are meant */
	uint32_t netns;	      /* a descriptor + 1: where the link goes */
	uint32_t netns_pid;
	uint32_t link;	 /* of a veth the other end's index, else the link below; ~0: none */
	uint32_t master; /* ~0: none */
	uint32_t mtu;
	uint32_t group; /* a deletion of a group takes all of it, at the cost of one */
	uint32_t id;	/* of a vxlan; mode of a macvlan */
	uint16_t port;	/* of a vxlan, big endian */
	uint8_t mac[6];
	char name[16];
	char type[16]; /* "veth", "bridge"; of a qdisc "tbf", "htb", "netem" */
	char alias[64];
	char peer[16]; /* veth: the other end */
	uint32_t peer_netns;
	uint32_t peer_netns_pid;
	uint8_t peer_mac[6];
	uint8_t prefix; /* bits */
	uint8_t scope;
	uint8_t address[16];
	uint8_t gateway[16];
	uint8_t source[16];
	uint32_t table;
	uint32_t metric;
	uint32_t parent; /* qdisc, class */
	uint32_t handle;
	uint64_t rate; /* bytes a second */
	uint64_t ceil;
	uint32_t burst;	 /* bytes */
	uint32_t limit;	 /* bytes; netem: packets */
	uint32_t delay;	 /* ns */
	uint32_t jitter; /* ns */
	uint32_t loss;	 /* of 2^32 - 1 */
	uint32_t priority;
	uint32_t other;	    /* htb: the class of what fits none */
	uint64_t counts[8]; /* rtnl_link_stats64: packets, bytes, errors, dropped, each rx, tx */
	uint32_t queue[9];  /* struct tc_stats */
};

/* What the kernel said of the request that it refused. */
struct nsb_rt_fault {
	uint32_t request; /* its number among those of the call */
	char text[124];
};

int nsb_rt_encode(const struct nsb_rt *rt, uint32_t seq, void *buf, size_t room);
int nsb_rt_talk(int fd, const struct nsb_rt *requests, unsigned int count,
		struct nsb_rt_fault *fault);
int nsb_rt_dump(int fd, const struct nsb_rt *request, struct nsb_rt *found, unsigned int room,
		struct nsb_rt_fault *fault);
/* <<< cffi */

#endif
