/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A port of one network namespace that is served in another one: for those that have no link to
 * each other. It listens on sockets that were opened elsewhere, and goes on where it is itself.
 *
 * Bytes wait in the kernel's buffers, never here: what the other side has no room for is only
 * peeked at. Each event is told once (EPOLLET), so whoever may go on does so until it would block.
 */
#include "init.h"

#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define FIRST_FD 3 /* the listeners: one for each address among the arguments */
#define MOST_PORTS 32
#define MOST_LINKS 4096 /* connections of all ports together; further ones wait */
#define MOST_PEERS 1024 /* senders of datagrams; the one silent longest makes way */
#define TURNS 16	/* of a connection, before others have theirs */
#define SILENT_S 120	/* until a sender of datagrams counts as gone: conntrack's, of streams */
#define LOOK_MS 10000

enum source { FROM_PORT, FROM_LINK, FROM_PEER };

struct address {
	struct sockaddr_in6 to; /* or sockaddr_in */
	unsigned int size;
};

struct port {
	struct address to;
	bool datagrams;
};

/* A connection: what comes from one end goes to the other. */
struct link {
	int fd[2]; /* 0: it is free */
	bool ended[2];
};

/* Who has sent a datagram to a port, and where answers have to come from: its control message. */
struct peer {
	int fd; /* 0: it is free */
	int port;
	struct address from;
	char control[64] __attribute__((aligned(8)));
	size_t control_size;
	long last;
};

static struct port ports[MOST_PORTS];
static struct link links[MOST_LINKS];
static struct peer peers[MOST_PEERS];
static int epoll, count;
static bool full;  /* a port has more connections than could be taken */
static bool freed; /* since then there is room */
static char buf[65536] __attribute__((aligned(8)));

static void hang_up(struct link *link)
{
	sys_close(link->fd[0]);
	sys_close(link->fd[1]);
	*link = (struct link){ 0 };
	freed = true;
}

static void watch(int operation, int fd, uint32_t events, enum source source, int index)
{
	struct epoll_event event = { .events = events };

	event.data.u64 = (uint64_t)source << 32 | (uint32_t)index;
	nsb_sys4(__NR_epoll_ctl, epoll, operation, fd, &event);
}

static long now(void)
{
	long time[2] = { 0, 0 };

	nsb_sys2(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, time);
	return time[0];
}

static int new_socket(const struct port *port)
{
	int type = port->datagrams ? SOCK_DGRAM : SOCK_STREAM;

	return (int)nsb_sys3(__NR_socket, port->to.to.sin6_family,
			     type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* Soon, or never: then it has an error, and an event. */
static bool go_on(int fd, const struct port *port)
{
	long err = nsb_sys3(__NR_connect, fd, &port->to.to, port->to.size);

	return err == 0 || err == -EINPROGRESS;
}

/* -- connections ------------------------------------------------------------------------------ */

static struct link *free_link(void)
{
	for (int i = 0; i < MOST_LINKS; i++)
		if (!links[i].fd[0])
			return &links[i];
	return NULL;
}

static void start_link(struct link *link, const struct port *port)
{
	int on = 1;

	for (int end = 0; end < 2; end++) {
		nsb_sys5(__NR_setsockopt, link->fd[end], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		nsb_sys5(__NR_setsockopt, link->fd[end], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	}
	if (!go_on(link->fd[1], port)) {
		hang_up(link);
		return;
	}
	for (int end = 0; end < 2; end++)
		watch(EPOLL_CTL_ADD, link->fd[end], EPOLLIN | EPOLLOUT | EPOLLET, FROM_LINK,
		      (int)(link - links));
}

/* The other socket first: a connection that was accepted could not wait for one. */
static void accept_all(int index)
{
	struct link *link;
	int fd;

	while ((link = free_link()) != NULL) {
		int other = new_socket(&ports[index]);

		if (other < 0)
			break;
		fd = (int)nsb_sys4(__NR_accept4, FIRST_FD + index, NULL, NULL,
				   SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd > 0) {
			*link = (struct link){ .fd = { fd, other } };
			start_link(link, &ports[index]);
			continue;
		}
		sys_close(other);
		if (fd == -EMFILE || fd == -ENFILE || fd == -ENOBUFS || fd == -ENOMEM)
			break;
		if (fd != -ECONNABORTED && fd != -EINTR)
			return;
	}
	full = true;
}

/* From one end to the other: 1: there may be more; 0: it would block, or is at its end; -errno. */
static long pass_on(struct link *link, int from)
{
	int to = link->fd[!from];
	long got, sent;

	if (link->ended[from])
		return 0;
	got = nsb_sys6(__NR_recvfrom, link->fd[from], buf, sizeof(buf), MSG_PEEK, NULL, NULL);
	if (got == 0) {
		link->ended[from] = true;
		nsb_sys2(__NR_shutdown, to, SHUT_WR);
		return 0;
	}
	if (got < 0)
		return got == -EAGAIN || got == -EINTR ? 0 : got;
	sent = nsb_sys6(__NR_sendto, to, buf, got, MSG_NOSIGNAL, NULL, 0);
	if (sent < 0)
		return sent == -EAGAIN || sent == -EINTR ? 0 : sent;
	nsb_sys6(__NR_recvfrom, link->fd[from], NULL, sent, MSG_TRUNC, NULL, NULL);
	return 1;
}

static void serve_link(int index)
{
	struct link *link = &links[index];
	int turns;

	for (int from = 0; from < 2 && link->fd[0]; from++) {
		long more = 1;

		for (turns = 0; more > 0 && turns < TURNS; turns++)
			more = pass_on(link, from);
		if (more < 0) {
			hang_up(link);
			return;
		}
		if (more > 0) /* told again, when the others were served */
			watch(EPOLL_CTL_MOD, link->fd[from], EPOLLIN | EPOLLOUT | EPOLLET,
			      FROM_LINK, index);
	}
	if (link->fd[0] && link->ended[0] && link->ended[1])
		hang_up(link);
}

/* -- datagrams -------------------------------------------------------------------------------- */

static bool same(const struct address *a, const struct address *b)
{
	const char *p = (const void *)&a->to, *q = (const void *)&b->to;

	if (a->size != b->size)
		return false;
	for (unsigned int i = 0; i < a->size; i++)
		if (p[i] != q[i])
			return false;
	return true;
}

static void forget(struct peer *peer)
{
	if (peer->fd)
		sys_close(peer->fd);
	peer->fd = 0;
	freed = true;
}

/* The one with this address, else a new one; NULL: there can be none. */
static struct peer *find(int port, const struct address *from)
{
	struct peer *oldest = &peers[0];

	for (int i = 0; i < MOST_PEERS; i++) {
		struct peer *peer = &peers[i];

		if (peer->fd && peer->port == port && same(&peer->from, from))
			return peer;
		if (oldest->fd && (!peer->fd || peer->last < oldest->last))
			oldest = peer;
	}
	forget(oldest);
	*oldest = (struct peer){ .fd = new_socket(&ports[port]), .port = port, .from = *from };
	if (oldest->fd < 0 || !go_on(oldest->fd, &ports[port])) {
		if (oldest->fd > 0)
			sys_close(oldest->fd);
		oldest->fd = 0;
		return NULL;
	}
	watch(EPOLL_CTL_ADD, oldest->fd, EPOLLIN, FROM_PEER, (int)(oldest - peers));
	return oldest;
}

/* Whom the datagram was for is whom the answer is from; by which link it came does not matter. */
static void keep_control(struct peer *peer, const struct msghdr *msg)
{
	struct cmsghdr *head = (void *)peer->control;
	char *data = (char *)CMSG_DATA(head);

	peer->control_size = 0;
	if (msg->msg_controllen < CMSG_LEN(sizeof(struct in_pktinfo)) ||
	    msg->msg_controllen > sizeof(peer->control))
		return;
	for (size_t i = 0; i < msg->msg_controllen; i++)
		peer->control[i] = ((const char *)msg->msg_control)[i];
	if (head->cmsg_level == IPPROTO_IP && head->cmsg_type == IP_PKTINFO)
		((struct in_pktinfo *)(void *)data)->ipi_ifindex = 0;
	else if (head->cmsg_level == IPPROTO_IPV6 && head->cmsg_type == IPV6_PKTINFO)
		((struct in6_pktinfo *)(void *)data)->ipi6_ifindex = 0;
	else
		return;
	peer->control_size = msg->msg_controllen;
}

static void serve_datagrams(int index)
{
	char control[64] __attribute__((aligned(8)));
	struct address from = { 0 };
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr msg = { .msg_name = &from.to,
			      .msg_namelen = sizeof(from.to),
			      .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control,
			      .msg_controllen = sizeof(control) };
	struct peer *peer;
	long got = nsb_sys3(__NR_recvmsg, FIRST_FD + index, &msg, MSG_DONTWAIT);

	if (got < 0)
		return;
	from.size = msg.msg_namelen;
	peer = find(index, &from);
	if (!peer)
		return;
	keep_control(peer, &msg);
	peer->last = now();
	nsb_sys6(__NR_sendto, peer->fd, buf, got, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
}

static void answer(int index)
{
	struct peer *peer = &peers[index];
	struct iovec iov = { buf, 0 };
	struct msghdr msg = { .msg_name = &peer->from.to,
			      .msg_namelen = peer->from.size,
			      .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = peer->control,
			      .msg_controllen = peer->control_size };
	long got = nsb_sys6(__NR_recvfrom, peer->fd, buf, sizeof(buf), MSG_DONTWAIT, NULL, NULL);

	if (got < 0) /* an ICMP error: nobody listens there now */
		return;
	iov.iov_len = (size_t)got;
	peer->last = now();
	nsb_sys3(__NR_sendmsg, FIRST_FD + peer->port, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void forget_silent(void)
{
	long since = now() - SILENT_S;

	for (int i = 0; i < MOST_PEERS; i++)
		if (peers[i].fd && peers[i].last < since)
			forget(&peers[i]);
}

/* -- all of it -------------------------------------------------------------------------------- */

/* A struct sockaddr in hexadecimal. */
static bool read_address(struct address *address, const char *text)
{
	char *out = (void *)&address->to;
	size_t length = nsb_strlen(text);

	if (length % 2 || length > 2 * sizeof(address->to))
		return false;
	for (size_t i = 0; i < length; i++) {
		int digit = text[i] >= 'a' ? text[i] - 'a' + 10 : text[i] - '0';

		if (digit < 0 || digit > 15)
			return false;
		out[i / 2] = (char)(out[i / 2] << 4 | digit);
	}
	address->size = (unsigned int)(length / 2);
	return true;
}

static bool open_port(int index, const char *text)
{
	struct port *port = &ports[index];
	int type = 0, fd = FIRST_FD + index;
	socklen_t size = sizeof(type);

	if (!read_address(&port->to, text) ||
	    nsb_sys5(__NR_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
		return false;
	port->datagrams = type == SOCK_DGRAM;
	nsb_sys3(__NR_fcntl, fd, F_SETFL, O_RDWR | O_NONBLOCK);
	watch(EPOLL_CTL_ADD, fd, port->datagrams ? EPOLLIN : EPOLLIN | EPOLLET, FROM_PORT, index);
	return true;
}

static void dispatch(const struct epoll_event *event)
{
	int index = (int)(uint32_t)event->data.u64;

	switch ((enum source)(event->data.u64 >> 32)) {
	case FROM_PORT:
		if (ports[index].datagrams)
			serve_datagrams(index);
		else
			accept_all(index);
		break;
	case FROM_LINK:
		if (links[index].fd[0])
			serve_link(index);
		break;
	case FROM_PEER:
		if (peers[index].fd)
			answer(index);
		break;
	}
}

int nsb_proxy_main(int argc, char **argv)
{
	struct epoll_event event;
	long looked = now();

	if (argc > MOST_PORTS)
		return 125;
	epoll = (int)nsb_sys1(__NR_epoll_create1, EPOLL_CLOEXEC);
	for (count = 0; count < argc; count++)
		if (!open_port(count, argv[count]))
			return 125;
	for (;;) {
		if (nsb_sys6(__NR_epoll_pwait, epoll, &event, 1, LOOK_MS, 0, 0) > 0)
			dispatch(&event);
		if (full && freed) {
			full = freed = false;
			for (int i = 0; i < count; i++)
				if (!ports[i].datagrams)
					accept_all(i);
		}
		if (now() - looked >= LOOK_MS / 1000) {
			looked = now();
			forget_silent();
		}
	}
}
