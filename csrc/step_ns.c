/* SPDX-License-Identifier: Apache-2.0 */
/* Steps that make, join and furnish namespaces and cgroups. */
#include "steps.h"

#include <sys/socket.h>

/* A file of the host's: the namespace that setns will come back to. */
int step_open(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int fd;

	cx->call = "openat";
	fd = sys_openat(AT_FDCWD, nsb_str(cx, op->a), O_RDONLY | O_CLOEXEC, 0);
	cx->slots[op->b] = fd;
	return fd < 0 ? fd : 0;
}

/* setns(2), of a namespace descriptor, or (Linux 5.8) of several at once by a pidfd. */
int step_setns(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "setns";
	return (int)nsb_sys2(__NR_setns, cx->slots[op->a], op->n);
}

int step_unshare(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "unshare";
	return (int)nsb_sys1(__NR_unshare, op->n);
}

/* cgroup v1: a thread that moves itself by "0" into tasks waits for no RCU grace period. */
int step_cgroup(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "write";
	return (int)sys_write(cx->slots[op->a], "0", 1) == 1 ? 0 : -EIO;
}

/* Tells the owner and waits for its byte. End of file: the owner has gone or gave up. */
int step_barrier(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct nsb_record record = { .kind = NSB_BARRIER, .op = cx->at };
	char byte;
	ssize_t got;

	nsb_send(cx->channel, &record, op->n ? cx->slots[op->a] : -1);
	cx->call = "read";
	do
		got = sys_read(cx->channel, &byte, 1);
	while (got == -EINTR);
	return got == 1 ? 0 : -ECANCELED;
}

int step_lo_up(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct ifreq request = { .ifr_ifrn.ifrn_name = "lo", .ifr_ifru.ifru_flags = IFF_UP };
	int err, fd;

	(void)op;
	if (cx->lo_is_up)
		return 0;
	cx->call = "socket";
	fd = (int)nsb_sys3(__NR_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	cx->call = "ioctl";
	err = (int)nsb_sys3(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
	sys_close(fd);
	return err;
}

int step_hostname(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *name = nsb_str(cx, op->a);

	cx->call = "sethostname";
	return (int)nsb_sys2(__NR_sethostname, name, nsb_strlen(name));
}

/* It belongs to the network namespace that it is opened in. One of netlink(7) acts with the rights
 * that its opener has there, as far as its user has them too. */
int step_socket(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int fd;

	cx->call = "socket";
	fd = (int)nsb_sys3(__NR_socket, op->n >> 16, (op->n >> 8 & 0xff) | SOCK_CLOEXEC,
			   op->n & 0xff);
	cx->slots[op->a] = fd;
	return fd < 0 ? fd : 0;
}
