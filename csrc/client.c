/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's side, inside the Python process: starting the launcher, sending requests,
 * receiving records. cffi releases the GIL around every call. Functions return 0 or more,
 * or -errno; -EINTR goes back to Python, where signal handlers run.
 */
#include "nsb.h"
#include "sys.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define MFD_NOEXEC_SEAL_FLAG 8U /* Linux 6.3; older kernels answer EINVAL */
/* Nobody has it mapped yet, so no write but a future one is possible; F_SEAL_WRITE would wait for
 * pages that are on their way to a list (0.1 ms). */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
#define STACK_SIZE 32768
#define MNT_ID_UNIQUE 0x4000U /* STATX_MNT_ID_UNIQUE, Linux 6.8 */

struct start {
	int fds[4]; /* exe, control, lock, owner: in the order of the launcher's numbers, below */
	volatile int err;
	char *stacks;
};

/* Runs in the caller's memory until execveat: no libc, no errno, nothing but this frame. */
static int start_exec(void *arg)
{
	static const char *const argv[] = { "nsbox-init", "launcher", NULL };
	static const char *const envp[] = { NULL };
	struct start *start = arg;
	int high[4], null;

	for (int i = 0; i < 4; i++) {
		high[i] = sys_dup_above(start->fds[i], 16);
		if (high[i] < 0) {
			start->err = -high[i];
			return 127;
		}
	}
	null = sys_openat(AT_FDCWD, "/dev/null", O_RDWR, 0);
	for (int i = 0; i < 3 && null >= 0; i++)
		if (null != i)
			nsb_sys3(__NR_dup3, null, i, 0);
	for (int i = 0; i < 4; i++)
		nsb_sys3(__NR_dup3, high[i], 3 + i, 0);
	sys_close_range(7, ~0U, 0);
	start->err = -(int)nsb_sys5(__NR_execveat, 4, "", argv, envp, AT_EMPTY_PATH);
	return 127;
}

static long vfork_call(int (*fn)(void *), struct start *start, unsigned int which, int exit_signal)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND,
		.exit_signal = (uint64_t)(unsigned int)exit_signal,
		.stack = (uint64_t)(uintptr_t)(start->stacks + which * STACK_SIZE),
		.stack_size = STACK_SIZE,
	};

	return nsb_clone3_call(&args, fn, start);
}

/* Ends after its child has executed the launcher, which so becomes nobody's waitable child. */
static int start_orphan(void *arg)
{
	struct start *start = arg;
	long pid = vfork_call(start_exec, start, 1, SIGCHLD);

	if (pid < 0)
		start->err = -(int)pid;
	return 0;
}

/*
 * Starts the launcher. The middle process never executes anything, so its exit_signal stays
 * 0: no waitpid(-1) of the caller's sees it, and ignoring SIGCHLD does not lose it.
 */
int nsb_launcher_start(int exe, int control, int lock, int owner_pidfd)
{
	struct start start = { .fds = { control, exe, lock, owner_pidfd } };
	uint64_t all = ~0ULL, before;
	long pid;

	start.stacks = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start.stacks == MAP_FAILED)
		return -ENOMEM;
	sys_sigmask(SIG_SETMASK, &all, &before);
	pid = vfork_call(start_orphan, &start, 0, 0);
	if (pid > 0)
		while (nsb_sys5(__NR_waitid, P_PID, pid, NULL, WEXITED | __WALL, NULL) == -EINTR)
			;
	sys_sigmask(SIG_SETMASK, &before, NULL);
	munmap(start.stacks, 2 * STACK_SIZE);
	return pid < 0 ? (int)pid : -start.err;
}

static int plan_memfd(const void *plan, size_t size)
{
	int fd = (int)nsb_sys2(__NR_memfd_create, "nsbox-plan",
			       MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL_FLAG);
	const char *p = plan;

	if (fd == -EINVAL)
		fd = (int)nsb_sys2(__NR_memfd_create, "nsbox-plan",
				   MFD_CLOEXEC | MFD_ALLOW_SEALING);
	while (fd >= 0 && size) {
		ssize_t done = sys_write(fd, p, size);

		if (done <= 0 && done != -EINTR) {
			sys_close(fd);
			return done ? (int)done : -EIO;
		}
		if (done > 0) {
			p += done;
			size -= (size_t)done;
		}
	}
	if (fd >= 0)
		nsb_sys3(__NR_fcntl, fd, F_ADD_SEALS, SEALS);
	return fd;
}

/* A struct nsb_request, whose text is where it is. */
static int send_request(int control, uint32_t kind, const void *text, size_t size, const int *fds,
			unsigned int nfds)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * (NSB_MAX_PASSED + 2))];
		struct cmsghdr align;
	} cmsg;
	uint32_t head[2] = { kind, (uint32_t)size };
	struct iovec iov[2] = { { head, sizeof(head) }, { (void *)(uintptr_t)text, size } };
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
	long err;

	if (size > NSB_MAX_TEXT)
		return -E2BIG;
	if (nfds) {
		cmsg.align.cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		cmsg.align.cmsg_level = SOL_SOCKET;
		cmsg.align.cmsg_type = SCM_RIGHTS;
		for (unsigned int i = 0; i < nfds; i++)
			((int *)(void *)CMSG_DATA(&cmsg.align))[i] = fds[i];
		msg.msg_control = &cmsg;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
	}
	/* A signal cannot cut a SEQPACKET message in two: nothing was sent. */
	do
		err = nsb_sys3(__NR_sendmsg, control, &msg, MSG_NOSIGNAL);
	while (err == -EINTR);
	return err < 0 ? (int)err : 0;
}

/* Few bytes travel in the request. A PID 1 that is nsbox-init reads its plan once more. */
static bool fits_request(const void *plan, size_t size)
{
	return size >= sizeof(struct nsb_plan) && size <= NSB_MAX_TEXT &&
	       !(((const struct nsb_plan *)plan)->flags & NSB_PLAN_INIT);
}

/*
 * Sends a plan with its descriptors. Returns the owner's end of the spawn's channel, where
 * its records will arrive; closing it makes the launcher kill the sandbox.
 */
int nsb_submit(int control, const void *plan, size_t size, const int *fds, unsigned int nfds)
{
	bool fits = fits_request(plan, size);
	int all[NSB_MAX_PASSED + 2], channel[2], err, memfd = -1;
	unsigned int n = 0;

	if (nfds > NSB_MAX_PASSED)
		return -E2BIG;
	err = (int)nsb_sys4(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel);
	if (err < 0)
		return err;
	all[n++] = channel[1];
	if (!fits)
		all[n++] = err = memfd = plan_memfd(plan, size);
	for (unsigned int i = 0; i < nfds; i++)
		all[n++] = fds[i];
	if (err >= 0)
		err = send_request(control, NSB_REQ_SPAWN, plan, fits ? size : 0, all, n);
	if (memfd >= 0)
		sys_close(memfd);
	sys_close(channel[1]);
	if (err < 0)
		sys_close(channel[0]);
	return err < 0 ? err : channel[0];
}

int nsb_sweep(int control, const char *text, size_t size)
{
	return send_request(control, NSB_REQ_SWEEP, text, size, NULL, 0);
}

/* 1: a record, and in *fd the descriptor that came along, if one did; 0: timed out;
 * -EPIPE: nobody is left to write one. */
int nsb_receive(int channel, struct nsb_record *record, int *fd, int timeout_ms)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} cmsg;
	struct iovec iov = { record, sizeof(*record) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &cmsg,
			      .msg_controllen = sizeof(cmsg) };
	struct timespec wait = { timeout_ms / 1000, (timeout_ms % 1000) * 1000000L };
	struct pollfd poll = { .fd = channel, .events = POLLIN };
	long got;

	if (timeout_ms >= 0) {
		got = nsb_sys5(__NR_ppoll, &poll, 1, &wait, 0, 0);
		if (got <= 0)
			return (int)got;
	}
	got = nsb_sys3(__NR_recvmsg, channel, &msg, MSG_CMSG_CLOEXEC);
	if (got < 0)
		return got == -ECONNRESET ? -EPIPE : (int)got;
	if (got == 0)
		return -EPIPE;
	if ((size_t)got != sizeof(*record))
		return -EPROTO;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
			*fd = *(const int *)(const void *)CMSG_DATA(c);
	return 1;
}

/*
 * Receives until it is decided how the set-up ended: STARTED, FAILED, or ENDED without
 * either (killed on the way); or until a BARRIER, after whose answer it is called again.
 * *handed is filled in as descriptors arrive, and the pid in record[1], which keeps what has come
 * so far: a call that a signal ended is made again. -ETIMEDOUT: no record came for so long.
 */
int nsb_await_start(int channel, struct nsb_record *record, struct nsb_handed *handed,
		    int timeout_ms)
{
	struct nsb_record *early = &record[1];
	int32_t *executing = &early->status; /* which no early record has */

	for (;;) {
		int fd = -1, got = nsb_receive(channel, record, &fd, timeout_ms);

		if (got <= 0)
			return got ? got : -ETIMEDOUT;
		if (fd >= 0)
			*(record->kind == NSB_BARRIER ? &handed->tree
			  : record->kind == NSB_ROOM  ? &handed->room
						      : &handed->pidfd) = fd;
		if (record->kind == NSB_ROOM) {
			continue;
		} else if (record->kind == NSB_SPAWNED) {
			early->pid = record->pid;
			if (!early->kind)
				continue;
			*record = *early;
			early->kind = 0;
		} else if (record->kind == NSB_EXECING) {
			*executing = 1;
			continue;
		} else if (record->kind == NSB_STARTED && !*executing && !record->pid) {
			continue;
		}
		/* A quick child, or its init, may speak before the launcher has told who it is. */
		if (early->pid ||
		    (record->kind != NSB_BARRIER && (record->kind != NSB_STARTED || record->pid)))
			break;
		*early = *record;
	}
	if (!record->pid)
		record->pid = early->pid;
	early->pid = record->pid;
	return 1;
}

/* Any system call, for nsbox.syscalls: in the caller's own process. */
long nsb_raw(long nr, long a, long b, long c, long d, long e)
{
	return nsb_syscall(nr, a, b, c, d, e, 0);
}

/* The main thread's directory of its namespaces, kept: half of a path is looked up in half the
 * time. Whoever closed it, and has the number now, has no such link there. */
static struct {
	int fd;
	long pid;
} kept = { -1, 0 };

/* In a forked child: it is its parent's. The pid alone would not tell, which is 1 for both where a
 * container's first process makes another's. */
void nsb_view_forget(void)
{
	kept.fd = -1;
}

static int namespaces_of_main(long pid)
{
	if (nsb_sys0(__NR_gettid) != pid)
		return -1;
	if (kept.fd < 0 || kept.pid != pid) {
		kept.fd = sys_openat(AT_FDCWD, "/proc/thread-self/ns",
				     O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
		kept.pid = pid;
	}
	return kept.fd;
}

/* The number in "net:[4026531840]", which is read without an inode of nsfs made for it. */
static int64_t namespace_number(int dir, const char *path)
{
	const char *name = path + sizeof("/proc/thread-self/ns/") - 1;
	char text[64];
	long got = dir < 0 ? -ENOENT : nsb_sys4(__NR_readlinkat, dir, name, text, sizeof(text));
	int64_t number = 0;

	if (got < 0) {
		kept.fd = dir < 0 ? kept.fd : -1;
		got = nsb_sys4(__NR_readlinkat, AT_FDCWD, path, text, sizeof(text));
	}

	for (long i = 0; i < got; i++)
		if (text[i] >= '0' && text[i] <= '9')
			number = number * 10 + (text[i] - '0');
	return got < 0 ? got : number ? number : -EPROTO;
}

/*
 * What a path, and "the caller's namespace", mean to the calling thread: ids, root directory
 * and namespaces. A thread that moved itself gets another launcher. A mount is of one mount
 * namespace: one that is never called as another tells that, too.
 */
int nsb_view(uint64_t *view, unsigned int count)
{
	static const char *const namespaces[] = {
		"/proc/thread-self/ns/mnt",
		"/proc/thread-self/ns/net",
		"/proc/thread-self/ns/user",
	};
	bool unique;
	struct statx st;
	int err, dir;

	if (count != 8)
		return -EINVAL;
	view[7] = (uint64_t)nsb_sys0(__NR_getpid);
	dir = namespaces_of_main((long)view[7]);
	err = (int)nsb_sys5(__NR_statx, AT_FDCWD, "/", 0, STATX_INO | MNT_ID_UNIQUE, &st);
	if (err < 0)
		return err;
	view[0] = st.stx_ino;
	view[1] = (uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor;
	unique = st.stx_mask & MNT_ID_UNIQUE;
	view[2] = st.stx_mnt_id;
	for (unsigned int i = unique ? 1 : 0; i < 3; i++) {
		int64_t number = namespace_number(dir, namespaces[i]);

		if (number < 0)
			return (int)number;
		view[2 + i] = (uint64_t)number;
	}
	view[5] = (uint64_t)nsb_sys0(__NR_geteuid) << 32 | (uint64_t)nsb_sys0(__NR_getegid);
	view[6] = (uint64_t)nsb_sys0(__NR_getuid) << 32 | (uint64_t)nsb_sys0(__NR_getgid);
	return 0;
}
