/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network namespace is two thirds of what six new namespaces cost (0.7 ms), so the
 * launcher makes the next one ahead, once it has been idle for a moment. Each is new and
 * goes to one sandbox. It belongs to the launcher's user namespace, and so is only for
 * sandboxes that have none of their own, or no capability in it: what they could not change
 * in a network namespace of their own either is set here.
 */
#include "init.h"

static int spare = -1, home = -1;
static bool wanted, opened;

/* A low descriptor, or -1: there is none, or none with ports that are open to everybody. */
int nsb_spare_take(bool open_ports)
{
	int fd = spare < 0 || (open_ports && !opened) ? -1 : sys_dup_above(spare, 0);

	if (spare >= 0)
		sys_close(spare);
	spare = -1;
	wanted = true;
	return fd;
}

bool nsb_spare_wanted(void)
{
	return wanted && spare < 0;
}

static int own_net(void)
{
	int low = sys_openat(AT_FDCWD, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC, 0);
	int high = low < 0 ? low : sys_dup_above(low, NSB_FD_HIGH);

	if (low >= 0)
		sys_close(low);
	return high;
}

/* Ports below 1024, and ping, for everybody. The files are those of the reader's network. */
static int open_ports(void)
{
	static const char *const values[][2] = {
		{ "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0" },
		{ "/proc/sys/net/ipv4/ping_group_range", "0 2147483647" },
	};

	for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		int fd = sys_openat(AT_FDCWD, values[i][0], O_WRONLY | O_CLOEXEC, 0);
		ssize_t done;

		if (fd < 0)
			return fd;
		done = sys_write(fd, values[i][1], nsb_strlen(values[i][1]));
		sys_close(fd);
		if (done < 0)
			return (int)done;
	}
	return 0;
}

/* 0, or what stood in the way. */
int nsb_spare_make(void)
{
	struct nsb_op op = { 0 };
	struct nsb_ctx cx;
	int err;

	wanted = false; /* until the next one is taken; for ever, where making them fails */
	if (home < 0)
		home = own_net();
	err = home < 0 ? home : (int)nsb_sys1(__NR_unshare, CLONE_NEWNET);
	if (err < 0)
		return err;
	err = step_lo_up(&cx, &op);
	if (err == 0)
		err = spare = own_net();
	if (err >= 0)
		err = open_ports();
	opened = err == 0;
	/* The launcher's own network is what net="host" means: without it, it is of no use. */
	if (nsb_sys2(__NR_setns, home, CLONE_NEWNET) < 0)
		sys_exit(125);
	return err;
}
