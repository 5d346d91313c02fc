/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cloning. A plan without joins is cloned by the launcher itself. A plan with joins needs
 * its namespaces made by a member of what it joins, so a joiner runs these ops and clones
 * the child as its sibling (CLONE_PARENT): the launcher is the parent of both.
 *
 * An idle launcher lends its memory and waits (CLONE_VM|CLONE_VFORK), which also makes the
 * kernel's OOM killer spare it; it copies its few pages when other requests wait, when it
 * must write id maps meanwhile, and when the plan says that its set-up may block.
 */
#include "init.h"

#define STACK_SIZE 65536

static char child_stack[STACK_SIZE] __attribute__((aligned(16)));
static char joiner_stack[STACK_SIZE] __attribute__((aligned(16)));

/* Before the child is in a user namespace of its own, which has no say over this one. */
static bool enter_spares(struct nsb_spawn *spawn)
{
	long err = spawn->net < 0 ? 0 : nsb_sys2(__NR_setns, spawn->net, CLONE_NEWNET);

	if (err == 0 && spawn->ipc >= 0)
		err = nsb_sys2(__NR_setns, spawn->ipc, CLONE_NEWIPC);
	if (err < 0)
		nsb_send_failed(spawn->cx->channel, NSB_AT_CLONE, (int)-err, "setns");
	return err == 0;
}

static int child_main(void *arg)
{
	struct nsb_spawn *spawn = arg;
	struct nsb_ctx *cx = spawn->cx;
	char byte;

	if (!cx->plan->njoin && !enter_spares(spawn))
		return 125;
	sys_close_range(NSB_FD_HIGH, ~0U, spawn->share ? CLOSE_RANGE_UNSHARE : 0);
	cx->go = spawn->go;
	/* End of file instead of the byte: the launcher died, or could not write the maps. */
	if (cx->plan->uid_map && sys_read(spawn->go, &byte, 1) != 1)
		return 125;
	nsb_run_ops(cx, cx->plan->njoin, cx->plan->nops);
	return 125;
}

static void clone_child(struct nsb_spawn *spawn, uint64_t flags)
{
	const struct nsb_plan *plan = spawn->cx->plan;
	int pidfd = -1;
	struct clone_args args = {
		.flags = plan->clone_flags | flags | CLONE_CLEAR_SIGHAND | CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		/* A sibling takes the parent's exit signal, and giving one is EINVAL. */
		.exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
		.stack = (uint64_t)(uintptr_t)child_stack,
		.stack_size = sizeof(child_stack),
	};
	long pid;

	if (spawn->net >= 0)
		args.flags &= ~(uint64_t)CLONE_NEWNET;
	if (spawn->ipc >= 0)
		args.flags &= ~(uint64_t)CLONE_NEWIPC;
	if (plan->cgroup_slot >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint32_t)spawn->cx->slots[plan->cgroup_slot];
	}
	if (spawn->share)
		args.flags |= CLONE_VM | CLONE_VFORK | CLONE_FILES;
	if (plan->fail_at == NSB_AT_CLONE)
		pid = -plan->fail_errno;
	else
		pid = nsb_clone3_call(&args, child_main, spawn);
	spawn->err = pid < 0 ? (int)pid : 0;
	spawn->pid = pid < 0 ? -1 : (int)pid;
	spawn->pidfd = pidfd;
}

/* Whether the child will execute nsbox-init, as its PID 1 or as something else. */
static bool needs_init(const struct nsb_plan *plan)
{
	const struct nsb_op *ops = (const struct nsb_op *)(plan + 1);
	uint16_t last = ops[plan->nops - 1].code;

	return (plan->flags & NSB_PLAN_INIT) || last == NSB_OP_PAUSE || last == NSB_OP_SELF;
}

/* A user namespace in another: the launcher, which is in neither, may not write its maps (EPERM). */
static bool maps_inside(const struct nsb_plan *plan)
{
	return plan->uid_map && plan->flags & NSB_PLAN_INNER_MAP;
}

/*
 * Shares the launcher's memory always, so that it learns the child's pid; dies at once. The
 * child may be born among processes that are hostile. They cannot look into it, for it is not
 * dumpable, and its memory belongs to the launcher's user namespace; but what it has no use
 * for, it does not have.
 */
static int joiner_main(void *arg)
{
	struct nsb_spawn *spawn = arg;
	struct nsb_ctx *cx = spawn->cx;
	bool entered = enter_spares(spawn);

	sys_close_range(NSB_FD_HIGH, ~0U, CLOSE_RANGE_UNSHARE);
	sys_close(NSB_FD_CONTROL);
	sys_close_range(NSB_FD_LOCK, NSB_FD_OWNER, 0);
	sys_close(NSB_FD_EPOLL);
	if (!needs_init(cx->plan)) {
		sys_close(cx->exe);
		sys_close(cx->plan_fd);
		cx->exe = cx->plan_fd = -1;
	}
	if (!entered || nsb_run_ops(cx, 0, cx->plan->njoin) < 0)
		return 0;
	sys_close(cx->proc);
	cx->proc = -1;
	if (maps_inside(cx->plan))
		sys_prctl(PR_SET_DUMPABLE, 1, 0); /* which entering a user namespace may clear */
	clone_child(spawn, CLONE_PARENT);
	if (maps_inside(cx->plan) && spawn->pid > 0)
		spawn->map_err = nsb_write_id_maps(cx->plan, spawn->pid, &spawn->map_call);
	return 0;
}

static void spawn_by_joiner(struct nsb_spawn *spawn)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_CLEAR_SIGHAND,
		.exit_signal = SIGCHLD,
		.stack = (uint64_t)(uintptr_t)joiner_stack,
		.stack_size = sizeof(joiner_stack),
	};
	siginfo_t info;
	long joiner = nsb_clone3_call(&args, joiner_main, spawn);

	if (joiner < 0) {
		spawn->err = (int)joiner;
		return;
	}
	while (nsb_sys5(__NR_waitid, P_PID, joiner, &info, WEXITED | __WALL, NULL) == -EINTR)
		;
	if (spawn->pid < 0 && spawn->err == 0 && info.si_code != CLD_EXITED)
		spawn->err = -ECANCELED; /* it was killed, and could not tell */
	/* The joiner's pidfd was in its own table. The child is ours and not yet reaped, so its
	 * number cannot have been given to anybody else. */
	if (spawn->pid > 0)
		spawn->pidfd = (int)nsb_sys2(__NR_pidfd_open, spawn->pid, 0);
}

void nsb_spawn(struct nsb_spawn *spawn)
{
	spawn->pid = spawn->pidfd = -1;
	spawn->err = spawn->map_err = 0;
	spawn->map_call = "";
	if (spawn->cx->plan->njoin)
		spawn_by_joiner(spawn);
	else
		clone_child(spawn, 0);
}

static int write_file(int dir, const char *name, const char *text, const char **call)
{
	size_t size = nsb_strlen(text);
	ssize_t done;
	int fd;

	*call = "openat";
	fd = sys_openat(dir, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
	if (fd < 0)
		return fd;
	*call = name[0] == 's' ? "setgroups" : name;
	done = sys_write(fd, text, size); /* a map is taken whole, by one write, or not at all */
	sys_close(fd);
	if (done < 0)
		return (int)done;
	return (size_t)done == size ? 0 : -EIO;
}

/* user_namespaces(7). The child waits in child_main, so its /proc directory is its own. */
int nsb_write_id_maps(const struct nsb_plan *plan, int pid, const char **call)
{
	char path[24] = "/proc/";
	char digits[12];
	const char *number = nsb_decimal(digits, sizeof(digits), (unsigned int)pid);
	const char *base = (const char *)plan;
	int dir, err = 0;

	*call = "injected";
	if (plan->fail_at == NSB_AT_ID_MAP)
		return -plan->fail_errno;
	for (size_t i = 0; i <= nsb_strlen(number); i++)
		path[6 + i] = number[i];
	*call = "openat";
	dir = sys_openat(AT_FDCWD, path, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (dir < 0)
		return dir;
	if (plan->flags & NSB_PLAN_DENY_SETGROUPS)
		err = write_file(dir, "setgroups", "deny", call);
	if (err == 0)
		err = write_file(dir, "gid_map", base + plan->gid_map, call);
	if (err == 0)
		err = write_file(dir, "uid_map", base + plan->uid_map, call);
	sys_close(dir);
	return err;
}
