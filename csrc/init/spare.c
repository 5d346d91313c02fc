/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network namespace is two thirds of what six new namespaces cost (0.7 ms), so the
 * launcher makes the next one ahead, once it has been idle for a moment. Each is new and
 * goes to one sandbox; it belongs to the launcher's user namespace, and so is only for
 * sandboxes that have none of their own.
 */
#include "init.h"

static int spare = -1, home = -1;
static bool wanted;

/* A low descriptor, or -1: there is none, the sandbox makes its own. */
int nsb_spare_take(void)
{
	int fd = spare < 0 ? -1 : sys_dup_above(spare, 0);

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

void nsb_spare_make(void)
{
	struct nsb_op op = { 0 };
	struct nsb_ctx cx;

	wanted = false; /* until the next one is taken; for ever, where making them fails */
	if (home < 0)
		home = own_net();
	if (home < 0 || nsb_sys1(__NR_unshare, CLONE_NEWNET) < 0)
		return;
	if (step_lo_up(&cx, &op) == 0)
		spare = own_net();
	/* The launcher's own network is what net="host" means: without it, it is of no use. */
	if (nsb_sys2(__NR_setns, home, CLONE_NEWNET) < 0)
		sys_exit(125);
}
