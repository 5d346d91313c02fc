/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launcher: parent and guardian of every sandbox of one owner. Single-threaded, without
 * secrets, in a session of its own; it blocks every signal, which is how INT, TERM, HUP and
 * QUIT of the owner's terminal pass it by.
 *
 * One epoll: requests, the owner's end, each child's end, each forked child's execve.
 */
#include "init.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define MAX_CHILDREN 65536
#define FOREVER (-1)
#define IDLE_MS 3
#define MOST_HELD 64	 /* mount namespaces: a bounded backlog */
#define GRACE_ROUNDS 200 /* of 10 ms: how long an ended owner's sandboxes may take to go */
#define SHARED_ROUNDS 10 /* of 10 ms: a child of the owner's can be before its execve */

enum source { FROM_CONTROL, FROM_OWNER, FROM_CHILD, FROM_GO, FROM_CHANNEL };

struct child {
	int pidfd; /* 0: this entry is free, next is the following free one */
	int channel;
	int go;	    /* write end; EPOLLERR says that the child has executed the payload */
	int mounts; /* its mount namespace, held so that its end need not wait for umounts */
	uint32_t next;
};

static struct child children[MAX_CHILDREN];
static uint32_t first_free, in_use, touched;
static struct nsb_ctx context;

static uint32_t child_take(void)
{
	uint32_t i = first_free;

	if (i < touched) {
		first_free = children[i].next;
	} else {
		if (touched == MAX_CHILDREN)
			return MAX_CHILDREN;
		i = touched++;
		first_free = touched;
	}
	in_use++;
	return i;
}

static void child_give(uint32_t i)
{
	children[i] = (struct child){ .next = first_free };
	first_free = i;
	in_use--;
}

/* first_free may point at an entry beyond touched: then all below it are in use. */
static int watch(int fd, uint32_t events, enum source source, uint32_t index)
{
	struct epoll_event event = { .events = events };

	event.data.u64 = (uint64_t)source << 32 | index;
	return (int)nsb_sys4(__NR_epoll_ctl, NSB_FD_EPOLL, EPOLL_CTL_ADD, fd, &event);
}

/* Out of the low numbers, which belong to the request that is being served. */
static int keep(int fd)
{
	int high = sys_dup_above(fd, NSB_FD_HIGH);

	sys_close(fd);
	return high;
}

/* Taken out of epoll by hand: a child may hold a copy, for which it would go on reporting. */
static void drop_watched(int *fd)
{
	struct epoll_event unused;

	if (*fd >= 0) {
		nsb_sys4(__NR_epoll_ctl, NSB_FD_EPOLL, EPOLL_CTL_DEL, *fd, &unused);
		sys_close(*fd);
	}
	*fd = -1;
}

static void drop(int *fd)
{
	if (*fd >= 0)
		sys_close(*fd);
	*fd = -1;
}

static void started(uint32_t i)
{
	struct nsb_record record = { .kind = NSB_STARTED };
	struct child *child = &children[i];

	if (child->pidfd <= 0 || child->go < 0)
		return;
	drop_watched(&child->go);
	nsb_send(child->channel, &record, -1);
}

static void reap(uint32_t i)
{
	struct nsb_record record = { .kind = NSB_ENDED };
	struct child *child = &children[i];
	siginfo_t info = { .si_pid = 0 };
	struct rusage usage;

	if (child->pidfd <= 0 ||
	    nsb_sys5(__NR_waitid, P_PIDFD, child->pidfd, &info, WEXITED | WNOHANG, &usage) < 0 ||
	    info.si_pid == 0)
		return;
	nsb_record_wait(&record, &info, &usage);
	started(i); /* a quick child has ended before its execve was noticed */
	nsb_send(child->channel, &record, -1);
	drop_watched(&child->go);
	drop_watched(&child->channel);
	drop_watched(&child->pidfd);
	drop(&child->mounts); /* after the owner was told: this takes 50 us */
	child_give(i);
}

/* The owner closed the channel before the end: nobody can want this sandbox any more. */
static void abandoned(uint32_t i)
{
	struct child *child = &children[i];

	if (child->pidfd <= 0 || child->channel < 0)
		return;
	nsb_sys4(__NR_pidfd_send_signal, child->pidfd, SIGKILL, 0, 0);
	drop_watched(&child->channel);
}

struct request {
	struct nsb_request head;
	int fds[2 + NSB_MAX_PASSED];
	unsigned int nfds;
	size_t received; /* bytes of head */
	int err;	 /* why it cannot be served, when the kernel could not deliver all of it */
};

static struct request request __attribute__((aligned(8))); /* for a plan in its text */

static bool from_us(const struct cmsghdr *cmsg)
{
	const struct ucred *cred = (const void *)CMSG_DATA(cmsg);

	return cred->uid == (uid_t)nsb_sys0(__NR_geteuid);
}

/* 1: a request; 0: none is waiting; -1: the owner has gone. */
static int receive(void)
{
	union {
		char space[CMSG_SPACE(sizeof(request.fds)) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { &request.head, sizeof(request.head) };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = &control,
			      .msg_controllen = sizeof(control) };
	bool trusted = false;
	long got = nsb_sys3(__NR_recvmsg, NSB_FD_CONTROL, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	request.nfds = 0;
	request.err = 0;
	if (got == -EAGAIN || got == -EINTR)
		return 0;
	if (got <= 0)
		return -1;
	request.received = (size_t)got;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			request.nfds = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			for (unsigned int i = 0; i < request.nfds; i++)
				request.fds[i] = ((const int *)(const void *)CMSG_DATA(c))[i];
		} else if (c->cmsg_type == SCM_CREDENTIALS) {
			trusted = from_us(c);
		}
	}
	if (msg.msg_flags & MSG_CTRUNC)
		request.err = EMFILE;
	else if (!trusted || msg.msg_flags & MSG_TRUNC || got < 8 ||
		 (size_t)got != request.head.size + 8)
		request.err = EPERM;
	return 1;
}

static bool more_waiting(void)
{
	struct pollfd control = { .fd = NSB_FD_CONTROL, .events = POLLIN };
	struct timespec now = { 0, 0 };

	return nsb_sys5(__NR_ppoll, &control, 1, &now, 0, 0) > 0 && control.revents & POLLIN;
}

/* Descriptors ran out: a child that cannot be watched must not live. */
static void disown(int pid, uint32_t i)
{
	siginfo_t info;

	nsb_sys2(__NR_kill, pid, SIGKILL);
	while (nsb_sys5(__NR_waitid, P_PID, pid, &info, WEXITED, NULL) == -EINTR)
		;
	nsb_send_failed(children[i].channel, NSB_AT_CLONE, EMFILE, "fcntl");
	drop(&children[i].go);
	drop(&children[i].channel);
	drop(&children[i].pidfd);
	child_give(i);
}

/* After clone3 in the parent: id maps, the owner's pidfd, the events to come. */
static void adopt(struct nsb_spawn *spawn, uint32_t i, int channel)
{
	const struct nsb_plan *plan = spawn->cx->plan;
	struct nsb_record record = { .kind = NSB_SPAWNED, .pid = spawn->pid };
	struct child *child = &children[i];
	const char *call = "";
	int err = 0, mounts = -1;

	child->pidfd = keep(spawn->pidfd);
	child->channel = keep(channel);
	if (child->pidfd < 0 || child->channel < 0) {
		disown(spawn->pid, i);
		return;
	}
	if (spawn->cx->told && spawn->cx->executing && !(plan->flags & NSB_PLAN_INIT))
		record.kind = NSB_STARTED;
	nsb_send(child->channel, &record, child->pidfd);
	if (plan->uid_map && plan->flags & NSB_PLAN_INNER_MAP) {
		err = spawn->map_err;
		call = spawn->map_call;
	} else if (plan->uid_map) {
		err = nsb_write_id_maps(plan, spawn->pid, &call);
	}
	if (err < 0)
		nsb_send_failed(child->channel, NSB_AT_ID_MAP, -err, call);
	else if (plan->uid_map)
		sys_write(child->go, "", 1);
	watch(child->pidfd, EPOLLIN, FROM_CHILD, i);
	watch(child->channel, 0, FROM_CHANNEL, i);
	if (spawn->share && in_use < MOST_HELD)
		mounts = (int)nsb_sys3(__NR_ioctl, child->pidfd, PIDFD_GET_MNT_NAMESPACE, 0);
	child->mounts = mounts < 0 ? -1 : keep(mounts);
	if (plan->flags & NSB_PLAN_INIT || err < 0)
		drop(&child->go);
	else if (child->go >= 0)
		watch(child->go, 0, FROM_GO, i);
}

/*
 * CLONE_VFORK ends before execve(2) has exchanged the memory. Who is told then may open the
 * child's /proc/PID/ns, and the launcher's memory, which is not dumpable, is in the way (EACCES)
 * of an ordinary user, who has rights over the child for its user namespace alone.
 */
static bool opened_soon(const struct nsb_plan *plan)
{
	const struct nsb_op *ops = (const struct nsb_op *)(plan + 1);

	if (plan->flags & NSB_PLAN_INIT) /* which tells by itself */
		return false;
	for (uint32_t i = 0; i < plan->njoin; i++)
		if (ops[i].code == NSB_OP_SETNS && ops[i].n & CLONE_NEWUSER)
			return true;
	return false;
}

static int make_go(struct nsb_spawn *spawn, struct child *child)
{
	int ends[2], err;

	child->go = child->mounts = spawn->go = -1;
	if (spawn->cx->told)
		return 0;
	err = (int)nsb_sys2(__NR_pipe2, ends, O_CLOEXEC);
	if (err < 0)
		return err;
	spawn->go = ends[0];
	child->go = keep(ends[1]);
	return child->go < 0 ? child->go : 0;
}

/* false: the owner was told why there is none. */
static bool take_spares(struct nsb_spawn *spawn)
{
	const struct nsb_plan *plan = spawn->cx->plan;
	bool must = plan->flags & NSB_PLAN_LAUNCHER_NET;
	int err = 0;

	if (must || plan->flags & NSB_PLAN_SPARE_NET)
		spawn->net = nsb_spare_take_net(must);
	if (must && spawn->net < 0) {
		err = nsb_spare_make();
		spawn->net = nsb_spare_take_net(must);
	}
	if (plan->flags & NSB_PLAN_SPARE_NET && plan->clone_flags & CLONE_NEWIPC)
		spawn->ipc = nsb_spare_take_ipc();
	if (plan->fail_at == NSB_AT_NET)
		nsb_send_failed(spawn->cx->channel, NSB_AT_NET, plan->fail_errno, "injected");
	else if (must && spawn->net < 0)
		nsb_send_failed(spawn->cx->channel, NSB_AT_NET, err ? -err : EMFILE, "unshare");
	else
		return true;
	return false;
}

/* Clones the child of a plan that was accepted. Returns what went wrong before a child existed. */
static int launch(struct nsb_plan *plan)
{
	struct nsb_spawn spawn = { .cx = &context, .go = -1, .net = -1, .ipc = -1 };
	uint32_t i = child_take();
	int err;

	if (i == MAX_CHILDREN)
		return -EAGAIN;
	nsb_ctx_init(&context, plan);
	context.channel = request.fds[0];
	context.plan_fd = request.head.size ? -1 : request.fds[1];
	context.exe = NSB_FD_EXE;
	context.parent = NSB_FD_SELF;
	for (unsigned int k = 0; k < context.plan->nfds; k++)
		context.slots[k] = request.fds[request.nfds - context.plan->nfds + k];
	spawn.share =
		!context.plan->uid_map && !(context.plan->flags & NSB_PLAN_FORK) && !more_waiting();
	context.told = spawn.share && !opened_soon(plan);
	err = make_go(&spawn, &children[i]);
	if (err == 0 && take_spares(&spawn)) {
		context.lo_is_up = spawn.net >= 0;
		/* The /proc files of a process that is not dumpable are root's: an ordinary user
		 * could not write its maps. The child takes a copy of this flag. */
		if (context.plan->uid_map)
			sys_prctl(PR_SET_DUMPABLE, 1, 0);
		nsb_spawn(&spawn);
		sys_prctl(PR_SET_DUMPABLE, 0, 0); /* nor as a joiner's steps have left it */
		err = spawn.err;
	}
	drop(&spawn.go);
	drop(&spawn.net);
	drop(&spawn.ipc);
	if (spawn.pid > 0) {
		adopt(&spawn, i, request.fds[0]);
		request.fds[0] = -1;
		return 0;
	}
	drop(&children[i].go);
	child_give(i);
	return err;
}

static void give_plan(struct nsb_plan *plan, size_t size)
{
	if (!request.head.size)
		nsb_plan_unmap(plan, size);
}

/* The plan in the request, or in a memfd beside it; NULL: refused. */
static struct nsb_plan *take_plan(size_t *size)
{
	unsigned int others = request.head.size ? 1 : 2;
	struct nsb_plan *plan;

	if (request.err || request.head.kind != NSB_REQ_SPAWN || request.nfds < others)
		return NULL;
	*size = request.head.size;
	if (request.head.size)
		plan = nsb_plan_accept(request.head.text, *size);
	else
		plan = nsb_plan_map(request.fds[1], size);
	if (!plan || plan->nfds + others == request.nfds)
		return plan;
	give_plan(plan, *size);
	return NULL;
}

static void serve_spawn(void)
{
	size_t size;
	struct nsb_plan *plan = take_plan(&size);
	int err;

	if (plan) {
		err = launch(plan);
		give_plan(plan, size);
		if (err < 0)
			nsb_send_failed(request.fds[0], NSB_AT_CLONE, -err,
					err == -EMFILE ? "fcntl" : "clone3");
	} else if (request.nfds) {
		nsb_send_failed(request.fds[0], NSB_AT_REQUEST, request.err ? request.err : EINVAL,
				request.err ? "recvmsg" : "plan_check");
	}
	for (unsigned int i = 0; i < request.nfds; i++)
		drop(&request.fds[i]);
}

/* false: the owner has gone. What came is not to be read in the memory of the next one's set-up,
 * whatever has become of it. */
static bool serve(void)
{
	int got = receive();

	if (got <= 0)
		return got == 0;
	if (request.err == 0 && request.head.kind == NSB_REQ_SWEEP)
		nsb_sweep_add(request.head.text, request.head.size);
	else
		serve_spawn();
	nsb_wipe(&request.head, request.received);
	return true;
}

static bool dispatch(const struct epoll_event *event)
{
	uint32_t index = (uint32_t)event->data.u64;

	switch ((enum source)(event->data.u64 >> 32)) {
	case FROM_CONTROL:
		return serve();
	case FROM_OWNER:
		return false;
	case FROM_CHILD:
		reap(index);
		break;
	case FROM_GO:
		started(index);
		break;
	case FROM_CHANNEL:
		abandoned(index);
		break;
	}
	return true;
}

/* One event at a time: what an event does may end the child that the next one is about. */
static bool step(int timeout_ms)
{
	struct epoll_event event;
	long got = nsb_sys6(__NR_epoll_pwait, NSB_FD_EPOLL, &event, 1, timeout_ms, 0, 0);

	if (got == 0)
		nsb_spare_make();
	return got <= 0 || dispatch(&event);
}

/* Registrations sent by an owner that died a moment later are still in the socket. */
static void drain_requests(void)
{
	while (receive() > 0) {
		if (request.err == 0 && request.head.kind == NSB_REQ_SWEEP)
			nsb_sweep_add(request.head.text, request.head.size);
		for (unsigned int i = 0; i < request.nfds; i++)
			drop(&request.fds[i]);
	}
}

static void pause_10ms(void)
{
	struct timespec pause = { 0, 10000000 };

	nsb_sys2(__NR_nanosleep, &pause, NULL);
}

/* The kernel gives back the locks of a process before its end is seen. One that goes on, and has
 * only let go of us, gives its own back. */
static void leave_shared(void)
{
	struct pollfd owner = { .fd = NSB_FD_OWNER, .events = POLLIN };
	struct timespec patience = { 1, 0 };

	nsb_sys5(__NR_ppoll, &owner, 1, &patience, 0, 0);
	for (int round = 0; round < SHARED_ROUNDS && !nsb_sweep_shared(); round++)
		pause_10ms();
}

static void end_everything(void)
{
	drain_requests();
	for (int round = 0; round < GRACE_ROUNDS; round++) {
		for (uint32_t i = 0; i < touched; i++)
			if (children[i].pidfd > 0) {
				nsb_sys4(__NR_pidfd_send_signal, children[i].pidfd, SIGKILL, 0, 0);
				reap(i);
			}
		if (nsb_sweep_run() && in_use == 0)
			break;
		pause_10ms();
	}
	leave_shared();
}

static void raise_nofile(void)
{
	struct rlimit limit;

	if (nsb_sys4(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	nsb_sys4(__NR_prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
}

/* What the owner left to its children, and a sandbox must not inherit. */
static void forget_owner(void)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} action = { 0 };

	for (int sig = 1; sig <= 64; sig++)
		nsb_sys4(__NR_rt_sigaction, sig, &action, NULL, sizeof(action.mask));
	sys_close_range(NSB_FD_CONTROL, NSB_FD_OWNER, CLOSE_RANGE_CLOEXEC);
	nsb_sys0(__NR_setsid);
	nsb_sys1(__NR_chdir, "/");
	nsb_sys1(__NR_umask, 022);
	sys_prctl(PR_SET_NAME, (unsigned long)"nsbox-launcher", 0);
	raise_nofile();
}

/* F_GETLK on the registry file tells who asks, such as `nsbox ps`, our pid: by the kernel's word. */
static void sign_entry(void)
{
	struct flock lock = { .l_type = F_WRLCK };

	nsb_sys3(__NR_fcntl, NSB_FD_LOCK, F_SETLK, &lock);
}

int nsb_launcher_main(void)
{
	int epoll, self;

	forget_owner();
	sign_entry();
	self = (int)nsb_sys2(__NR_pidfd_open, nsb_sys0(__NR_getpid), 0);
	if (self != NSB_FD_SELF)
		return 125;
	epoll = (int)nsb_sys1(__NR_epoll_create1, EPOLL_CLOEXEC);
	if (epoll != NSB_FD_EPOLL)
		return 125;
	if (watch(NSB_FD_CONTROL, EPOLLIN, FROM_CONTROL, 0) < 0 ||
	    watch(NSB_FD_OWNER, EPOLLIN, FROM_OWNER, 0) < 0)
		return 125;
	while (step(nsb_spare_wanted() ? IDLE_MS : FOREVER))
		;
	end_everything();
	return 0;
}
