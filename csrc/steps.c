/* SPDX-License-Identifier: Apache-2.0 */
/* The dispatch table, the loop over ops, and the records that go to the owner. */
#include "steps.h"

#include <sys/socket.h>

/* Every step that a child can take. nsbox/steps.py holds the same names, a test compares them. */
static nsb_step_fn *const table[NSB_OP_MAX] = {
	[NSB_OP_SETNS] = step_setns,	 /* n: CLONE_NEW* that a pidfd stands for */
	[NSB_OP_UNSHARE] = step_unshare, /* n: CLONE_NEW* */
	[NSB_OP_CGROUP] = step_cgroup,
	[NSB_OP_BARRIER] = step_barrier,	 /* n: whether what slot a holds goes along */
	[NSB_OP_SETGROUPS] = step_setgroups,	 /* a: gids (uint32), n: bytes */
	[NSB_OP_SETGID] = step_setgid,		 /* n: gid */
	[NSB_OP_SETUID] = step_setuid,		 /* n: uid */
	[NSB_OP_PROPAGATION] = step_propagation, /* n: MS_* */
	[NSB_OP_OPEN_TREE] = step_open_tree,	 /* n: device number, m: MOUNT_ATTR_* */
	[NSB_OP_ROOT_TMPFS] = step_root_tmpfs,	 /* n: MOUNT_ATTR_* */
	[NSB_OP_ROOT_TREE] = step_root_tree,
	[NSB_OP_ROOT_HERE] = step_root_here,
	[NSB_OP_ATTACH] = step_attach,
	[NSB_OP_MOUNT] = step_mount, /* n: MOUNT_ATTR_* */
	[NSB_OP_MKDIR] = step_mkdir, /* n: mode */
	[NSB_OP_FILE] = step_file,   /* n: bytes, c: uid, m: gid << 32 | mode */
	[NSB_OP_SYMLINK] = step_symlink,
	[NSB_OP_READONLY] = step_readonly, /* n: MOUNT_ATTR_* */
	[NSB_OP_PIVOT] = step_pivot,	   /* n: roots between the old one and the new */
	[NSB_OP_CHROOT] = step_chroot,
	[NSB_OP_PROCFS] = step_procfs,
	[NSB_OP_SYSCTL] = step_sysctl,
	[NSB_OP_LO_UP] = step_lo_up,
	[NSB_OP_HOSTNAME] = step_hostname,
	[NSB_OP_UMASK] = step_umask, /* n: mask */
	[NSB_OP_CHDIR] = step_chdir,
	[NSB_OP_RLIMIT] = step_rlimit, /* a: RLIMIT_*, n: soft, m: hard */
	[NSB_OP_KEYRING] = step_keyring,
	[NSB_OP_SETSID] = step_setsid,	       /* n: 1, descriptor 0 becomes the terminal */
	[NSB_OP_BOUNDING] = step_bounding,     /* n: capabilities kept */
	[NSB_OP_SECUREBITS] = step_securebits, /* n: SECBIT_* */
	[NSB_OP_CAPS] = step_caps,	       /* n: permitted and effective, m: inheritable */
	[NSB_OP_AMBIENT] = step_ambient,       /* n: capabilities */
	[NSB_OP_NO_NEW_PRIVS] = step_no_new_privs,
	[NSB_OP_DUMPABLE] = step_dumpable,   /* n: 0 or 1 */
	[NSB_OP_PDEATHSIG] = step_pdeathsig, /* n: signal */
	[NSB_OP_FD] = step_fd,		     /* n: number that the payload sees */
	[NSB_OP_CLOEXEC] = step_cloexec,     /* n: first, m: last descriptor */
	[NSB_OP_INIT] = step_init,
	[NSB_OP_SIGNALS] = step_signals,
	[NSB_OP_EXECING] = step_execing,
	[NSB_OP_EXEC] = step_exec,
	[NSB_OP_PAUSE] = step_pause,
	[NSB_OP_OPEN] = step_open,
	[NSB_OP_PTY] = step_pty,		   /* n: struct winsize */
	[NSB_OP_ROOT_OVERLAY] = step_root_overlay, /* n: MOUNT_ATTR_* */
	[NSB_OP_SOCKET] = step_socket,		   /* n: family, type and protocol, 8 bits each */
	[NSB_OP_LANDLOCK] = step_landlock,	   /* n: LANDLOCK_SCOPE_* */
	[NSB_OP_SECCOMP] = step_seccomp,	   /* a: sock_filter, n: bytes, m: flags */
	[NSB_OP_SELF] = step_self,
	[NSB_OP_MKNOD] = step_mknod, /* n: device number */
	[NSB_OP_ROOM] = step_room,
};

void nsb_ctx_init(struct nsb_ctx *cx, void *plan)
{
	cx->base = plan;
	cx->plan = plan;
	cx->call = "";
	cx->at = NSB_AT_NOWHERE;
	cx->exec_errno = 0;
	cx->told = cx->lo_is_up = cx->executing = false;
	cx->channel = cx->plan_fd = cx->exe = cx->parent = cx->root = cx->proc = cx->go = -1;
	for (int i = 0; i < NSB_MAX_SLOTS; i++)
		cx->slots[i] = -1;
}

/* Sends a record, with fd attached unless it is -1. Nobody to tell is no error: the owner has gone. */
void nsb_send(int channel, const struct nsb_record *record, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { (void *)(uintptr_t)record, sizeof(*record) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		*(int *)(void *)CMSG_DATA(&control.align) = fd;
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int));
	}
	while (nsb_sys3(__NR_sendmsg, channel, &msg, MSG_NOSIGNAL) == -EINTR)
		;
}

void nsb_send_failed(int channel, uint32_t at, int err, const char *call)
{
	struct nsb_record record = { .kind = NSB_FAILED, .op = at, .err = err };

	for (size_t i = 0; i < sizeof(record.call) - 1 && call[i]; i++)
		record.call[i] = call[i];
	nsb_send(channel, &record, -1);
}

int nsb_run_ops(struct nsb_ctx *cx, uint32_t first, uint32_t last)
{
	const struct nsb_op *ops = (const struct nsb_op *)(cx->plan + 1);

	for (cx->at = first; cx->at < last; cx->at++) {
		const struct nsb_op *op = &ops[cx->at];
		int err;

		if (cx->at == cx->plan->fail_at) {
			cx->call = "injected";
			err = -cx->plan->fail_errno;
		} else {
			err = table[op->code](cx, op);
		}
		if (err < 0) {
			nsb_send_failed(cx->channel, cx->at, -err, cx->call);
			return err;
		}
	}
	return 0;
}
