/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PID 1 of a sandbox, and the pause process of a pod.
 *
 * init runs the rest of the plan in a child, forwards to it what it is sent, reaps whatever
 * is orphaned, and ends when the payload does; the kernel then ends all others. The
 * payload's wait status goes out on the channel, which no payload can reach: an exit code
 * could be forged, and PID 1 cannot die of a signal of its own.
 */
#include "init.h"

static char child_stack[65536] __attribute__((aligned(16)));
static struct nsb_ctx context;
static uint32_t next_op;

static int payload_main(void *arg)
{
	(void)arg;
	nsb_run_ops(&context, next_op, context.plan->nops);
	return 125;
}

static long spawn_payload(void)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK,
		.exit_signal = SIGCHLD,
		.stack = (uint64_t)(uintptr_t)child_stack,
		.stack_size = sizeof(child_stack),
	};

	return nsb_clone3_call(&args, payload_main, NULL);
}

/* Reaps all that have ended; true when the payload was among them. */
static bool reap_all(long payload, siginfo_t *ended, struct rusage *usage)
{
	struct rusage other;
	siginfo_t info;
	bool found = false;

	for (;;) {
		info.si_pid = 0;
		if (nsb_sys5(__NR_waitid, P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT, NULL) < 0 ||
		    info.si_pid == 0)
			return found;
		if (info.si_pid == payload) {
			nsb_sys5(__NR_waitid, P_PID, payload, ended, WEXITED, usage);
			found = true;
		} else {
			nsb_sys5(__NR_waitid, P_PID, info.si_pid, &info, WEXITED, &other);
		}
	}
}

static void run_payload(int channel, long payload)
{
	struct nsb_record record = { .kind = NSB_EXITED };
	struct rusage usage;
	siginfo_t info;
	uint64_t all = ~0ULL;

	while (!reap_all(payload, &info, &usage)) {
		siginfo_t sent;
		long sig = nsb_sys4(__NR_rt_sigtimedwait, &all, &sent, NULL, sizeof(all));

		if (sig > 0 && sig != SIGCHLD && payload > 0)
			nsb_sys2(__NR_kill, payload, sig);
	}
	nsb_record_wait(&record, &info, &usage);
	nsb_send(channel, &record, -1);
}

int nsb_init_main(int channel, int plan_fd, int next)
{
	struct nsb_record record = { .kind = NSB_STARTED };
	size_t size;
	void *plan = nsb_plan_map(plan_fd, &size);
	long payload;

	if (!plan || next < 0 || channel < 0)
		return 125;
	nsb_sys3(__NR_fcntl, channel, F_SETFD, FD_CLOEXEC);
	sys_close(plan_fd);
	nsb_ctx_init(&context, plan);
	context.channel = channel;
	next_op = (uint32_t)next;
	payload = spawn_payload();
	if (payload < 0) {
		nsb_send_failed(channel, next_op - 1, (int)-payload, "clone3");
		return 125;
	}
	/* Descriptors of the payload's held here would keep its pipes open behind its back. */
	nsb_plan_unmap(plan, size);
	if (channel > 0)
		sys_close_range(0, (unsigned int)channel - 1, 0);
	sys_close_range((unsigned int)channel + 1, ~0U, 0);
	nsb_send(channel, &record, -1);
	run_payload(channel, payload);
	return 0;
}

/*
 * Kubernetes' pause: ends on INT and TERM, reaps when the pid namespace is shared. A member of
 * that is no more able to end it so than by SIGKILL: only a sender outside has the number 0
 * here, and only kill(2) does not let the sender say who it is.
 */
int nsb_pause_main(void)
{
	uint64_t all = ~0ULL;
	struct rusage usage;
	siginfo_t info;

	sys_close_range(0, ~0U, 0);
	for (;;) {
		long sig = nsb_sys4(__NR_rt_sigtimedwait, &all, &info, NULL, sizeof(all));

		if ((sig == SIGINT || sig == SIGTERM) && info.si_code == SI_USER &&
		    info.si_pid == 0)
			return 0;
		reap_all(-1, &info, &usage);
	}
}
