/* SPDX-License-Identifier: Apache-2.0 */
/* The last steps: process attributes, descriptors, and the execve that ends a plan. */
#include "steps.h"

#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/vfs.h>

int step_umask(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "umask";
	nsb_sys1(__NR_umask, op->n);
	return 0;
}

int step_rlimit(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct rlimit limit = { .rlim_cur = op->n, .rlim_max = op->m };

	cx->call = "prlimit64";
	return (int)nsb_sys4(__NR_prlimit64, 0, op->a, &limit, 0);
}

int step_setsid(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err = (int)nsb_sys0(__NR_setsid);

	cx->call = "setsid";
	if (err >= 0 && op->n) {
		cx->call = "ioctl";
		err = (int)nsb_sys3(__NR_ioctl, 0, TIOCSCTTY, 0);
	}
	return err < 0 ? err : 0;
}

/* A terminal of the sandbox's own: the slave into slot b, the master to the owner through the
 * socket in slot a. Made with the payload's ids, so that it owns /dev/pts/0; the slave is opened
 * by the master (Linux 4.13), for names in /dev/pts can be anybody's. In a sandbox that runs, so
 * can /dev/pts itself: a file system of the payload's would answer the ioctls as it likes. */
int step_pty(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int master = nsb_in_root(cx, "/dev/pts/ptmx", O_RDWR | O_NOCTTY), locked = 0, slave;
	struct statfs fs = { 0 };

	if (master < 0)
		return master;
	cx->call = "fstatfs";
	if (nsb_sys2(__NR_fstatfs, master, &fs) < 0 || fs.f_type != DEVPTS_SUPER_MAGIC) {
		sys_close(master);
		return -ENOTTY;
	}
	cx->call = "ioctl";
	nsb_sys3(__NR_ioctl, master, TIOCSPTLCK, &locked); /* or the third one fails */
	nsb_sys3(__NR_ioctl, master, TIOCSWINSZ, &op->n);
	slave = (int)nsb_sys3(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	cx->slots[op->b] = slave;
	if (slave >= 0)
		nsb_send(cx->slots[op->a], &(struct nsb_record){ 0 }, master);
	sys_close(master);
	return slave < 0 ? slave : 0;
}

int step_dumpable(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "prctl";
	return sys_prctl(PR_SET_DUMPABLE, op->n, 0);
}

/* After every change of credentials, which clears it. The launcher may have died before. */
int step_pdeathsig(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct pollfd parent = { .fd = cx->parent, .events = POLLIN };
	struct timespec now = { 0, 0 };
	int err;

	cx->call = "prctl";
	err = sys_prctl(PR_SET_PDEATHSIG, op->n, 0);
	if (err < 0)
		return err;
	cx->call = "ppoll";
	err = (int)nsb_sys5(__NR_ppoll, &parent, 1, &now, 0, 0);
	return err > 0 ? -ECANCELED : err;
}

/* Descriptors that the plan still needs make way for the number that the payload asked for. */
static int make_way(struct nsb_ctx *cx, int number)
{
	int *const own[] = { &cx->channel, &cx->plan_fd, &cx->exe, &cx->parent,
			     &cx->root,	   &cx->proc,	 &cx->go };
	int moved = -1;

	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]) + NSB_MAX_SLOTS; i++) {
		int *fd = i < NSB_MAX_SLOTS ? &cx->slots[i] : own[i - NSB_MAX_SLOTS];

		if (*fd != number)
			continue;
		if (moved < 0)
			moved = sys_dup_above(number, NSB_FD_HIGH);
		if (moved < 0)
			return moved;
		*fd = moved;
	}
	return 0;
}

int step_fd(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err, number = (int)op->n;

	cx->call = "fcntl";
	if (cx->slots[op->a] == number)
		return (int)nsb_sys3(__NR_fcntl, number, F_SETFD, 0);
	err = make_way(cx, number);
	if (err < 0)
		return err;
	cx->call = "dup3";
	err = (int)nsb_sys3(__NR_dup3, cx->slots[op->a], number, 0);
	return err < 0 ? err : 0;
}

int step_cloexec(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "close_range";
	return sys_close_range((unsigned int)op->n, (unsigned int)op->m, CLOSE_RANGE_CLOEXEC);
}

static int exec_self(struct nsb_ctx *cx, const char *const *argv)
{
	const char *envp[] = { NULL };

	cx->call = "execveat";
	return (int)nsb_sys5(__NR_execveat, cx->exe, "", argv, envp, AT_EMPTY_PATH);
}

/* PID 1 becomes a fresh image of nsbox-init, which forks and runs the rest of the plan. */
int step_init(struct nsb_ctx *cx, const struct nsb_op *op)
{
	char channel[12], plan[12], next[12];
	const char *argv[] = {
		"nsbox-init",
		"init",
		nsb_decimal(channel, sizeof(channel), (unsigned int)cx->channel),
		nsb_decimal(plan, sizeof(plan), (unsigned int)cx->plan_fd),
		nsb_decimal(next, sizeof(next), cx->at + 1),
		NULL,
	};
	int err;

	(void)op;
	cx->call = "fcntl";
	err = (int)nsb_sys3(__NR_fcntl, cx->channel, F_SETFD, 0);
	if (err == 0)
		err = (int)nsb_sys3(__NR_fcntl, cx->plan_fd, F_SETFD, 0);
	return err < 0 ? err : exec_self(cx, argv);
}

/* pause: the process that holds what the containers of a pod share. */
int step_pause(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *argv[] = { "nsbox-init", "pause", NULL };

	(void)op;
	return exec_self(cx, argv);
}

/* nsbox-init again, with the arguments of the plan: what it is then, see csrc/init/start.c. */
int step_self(struct nsb_ctx *cx, const struct nsb_op *op)
{
	(void)op;
	return exec_self(cx, (const char *const *)(void *)(cx->base + cx->plan->argv));
}

/* Dispositions are the default ones since the launcher; nothing is pending in a new process. */
int step_signals(struct nsb_ctx *cx, const struct nsb_op *op)
{
	uint64_t none = 0;

	(void)op;
	cx->call = "rt_sigprocmask";
	return sys_sigmask(SIG_SETMASK, &none, NULL);
}

int step_execing(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct nsb_record record = { .kind = NSB_EXECING, .op = cx->at };

	(void)op;
	cx->executing = true;
	if (!cx->told)
		nsb_send(cx->channel, &record, -1);
	return 0;
}

static bool passed_over(int err)
{
	return err == -ENOENT || err == -ENOTDIR || err == -EACCES || err == -ELOOP ||
	       err == -ENAMETOOLONG;
}

/* One per directory of PATH. What stands in the way of an earlier one says more than ENOENT. */
int step_exec(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err;

	cx->call = "execve";
	err = (int)nsb_sys3(__NR_execve, nsb_str(cx, op->a), cx->base + cx->plan->argv,
			    cx->base + cx->plan->envp);
	if (op->flags & NSB_IGNORE_ENOENT && passed_over(err)) {
		if (err == -EACCES)
			cx->exec_errno = err;
		return 0;
	}
	return err == -ENOENT && cx->exec_errno ? cx->exec_errno : err;
}
