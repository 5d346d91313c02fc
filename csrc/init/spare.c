/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network namespace is two thirds of what six new namespaces cost (0.7 ms), and an IPC namespace
 * a third of what clone3 still costs then. So the launcher makes the next ones ahead, once it has
 * been idle for a moment. Each is new and goes to one sandbox. They belong to the launcher's user
 * namespace, and so are only for sandboxes that have none of their own. The network is also for
 * those with no capability in it: what they could not change in one of their own either is set
 * here.
 */
#include "init.h"

static int net = -1, ipc = -1, home_net = -1, home_ipc = -1;
static bool wanted, opened;

static int take(int *spare)
{
	int fd = *spare;

	*spare = -1;
	return fd;
}

/* A descriptor, or -1: there is none, or none with ports that are open to everybody. */
int nsb_spare_take_net(bool open_ports)
{
	int fd = take(&net);

	wanted = true;
	if (fd >= 0 && open_ports && !opened) {
		sys_close(fd);
		fd = -1;
	}
	return fd;
}

int nsb_spare_take_ipc(void)
{
	return take(&ipc);
}

bool nsb_spare_wanted(void)
{
	return wanted && net < 0;
}

static int own(const char *path)
{
	int low = sys_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
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

/* The way back may be closed: setns(2) needs a right over the user namespace that has it, which a
 * caller that is root of another one does not have. It is tried before anything is left. */
static int home_of(const char *path, int kind)
{
	int fd = own(path);
	int err = fd < 0 ? fd : (int)nsb_sys2(__NR_setns, fd, kind);

	if (fd >= 0 && err < 0)
		sys_close(fd);
	return err < 0 ? err : fd;
}

/* The launcher's own namespaces are what sandboxes share with it: without them, it is of no use. */
static void go_home(int home, int kind)
{
	if (nsb_sys2(__NR_setns, home, kind) < 0)
		sys_exit(125);
}

static void make_ipc(void)
{
	if (home_ipc < 0)
		home_ipc = home_of("/proc/self/ns/ipc", CLONE_NEWIPC);
	if (ipc >= 0 || home_ipc < 0 || nsb_sys1(__NR_unshare, CLONE_NEWIPC) < 0)
		return;
	ipc = own("/proc/self/ns/ipc");
	go_home(home_ipc, CLONE_NEWIPC);
}

/* 0, or what stood in the way of a network. */
int nsb_spare_make(void)
{
	struct nsb_op op = { 0 };
	struct nsb_ctx cx = { .lo_is_up = false };
	int err;

	wanted = false; /* until the next one is taken; for ever, where making them fails */
	make_ipc();
	if (home_net < 0)
		home_net = home_of("/proc/self/ns/net", CLONE_NEWNET);
	err = home_net < 0 ? home_net : (int)nsb_sys1(__NR_unshare, CLONE_NEWNET);
	if (err < 0)
		return err;
	err = step_lo_up(&cx, &op);
	if (err == 0)
		err = net = own("/proc/self/ns/net");
	if (err >= 0)
		err = open_ports();
	opened = err == 0;
	go_home(home_net, CLONE_NEWNET);
	return err;
}
