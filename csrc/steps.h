/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter of plans: what runs in the child between clone3 and execve.
 *
 * Laws of this code:
 *  - no allocation, no stdio, no libc at all: raw system calls, and memory of the stack;
 *  - a step has one effect and answers 0 or -errno; cx->call names the call it is in;
 *  - no loops, branches or variables in a plan: those were decided by nsbox.compile();
 *  - paths inside the new root are resolved by openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS),
 *    never by joining strings, and acted upon by descriptor.
 */
#ifndef NSB_STEPS_H
#define NSB_STEPS_H

#include "nsb.h"
#include "sys.h"

/* The launcher keeps what lives long at or above this number, so that a child can drop all
 * of it by one close_range, however many sandboxes are alive. */
#define NSB_FD_HIGH 256

struct nsb_ctx {
	char *base; /* the plan, relocated; offsets count from here */
	const struct nsb_plan *plan;
	const char *call; /* the system call that is being made */
	uint32_t at;	  /* index of the op that is being run */
	bool told;	  /* the launcher reads executing here, in its own memory, and tells */
	bool lo_is_up;	  /* in the network that was made ahead */
	bool executing;	  /* everything up to execve succeeded */
	int exec_errno;	  /* of a PATH entry that was passed over, when it says more */
	int channel;	  /* records to the owner */
	int plan_fd;
	int exe;    /* nsbox-init itself, a sealed memfd */
	int parent; /* the launcher's pidfd: readable when it has died */
	int root;   /* O_PATH of the new root */
	int proc;   /* a private procfs that no payload sees */
	int go;	    /* in a forked child: the launcher's pipe, which execve closes */
	int slots[NSB_MAX_SLOTS];
};

typedef int nsb_step_fn(struct nsb_ctx *cx, const struct nsb_op *op);

void nsb_ctx_init(struct nsb_ctx *cx, void *plan);
/* Runs ops [first, last); on failure sends FAILED and returns -errno. */
int nsb_run_ops(struct nsb_ctx *cx, uint32_t first, uint32_t last);
void nsb_send(int channel, const struct nsb_record *record, int fd);
void nsb_send_failed(int channel, uint32_t at, int err, const char *call);

static inline const char *nsb_str(const struct nsb_ctx *cx, uint32_t offset)
{
	return cx->base + offset;
}

/* step_ns.c */
nsb_step_fn step_open, step_setns, step_unshare, step_cgroup, step_barrier, step_lo_up,
	step_hostname, step_socket;
/* step_mount.c */
nsb_step_fn step_propagation, step_open_tree, step_root_tmpfs, step_root_overlay, step_root_tree,
	step_root_here, step_attach, step_mount, step_readonly, step_pivot, step_chroot;
/* step_file.c */
nsb_step_fn step_mkdir, step_mknod, step_file, step_symlink, step_procfs, step_sysctl;
nsb_step_fn step_chdir, step_room;
int nsb_in_root(struct nsb_ctx *cx, const char *path, int flags);
int nsb_parent_in_root(struct nsb_ctx *cx, const char *path, const char **name);
int nsb_fill_file(struct nsb_ctx *cx, const struct nsb_op *op, int fd);
int nsb_make_dirs(struct nsb_ctx *cx, const char *path, size_t length, const struct nsb_op *op);
/* step_mount.c */
int nsb_file_over(struct nsb_ctx *cx, const struct nsb_op *op);
/* A detached mount of a new file system; options are a LIST. */
int nsb_new_mount(struct nsb_ctx *cx, const char *type, const char *options, uint64_t attrs);
/* step_cred.c */
nsb_step_fn step_setgroups, step_setgid, step_setuid, step_bounding, step_securebits, step_caps,
	step_ambient, step_no_new_privs, step_keyring, step_landlock, step_seccomp;
/* step_exec.c */
nsb_step_fn step_umask, step_rlimit, step_setsid, step_dumpable, step_pdeathsig, step_fd,
	step_cloexec, step_init, step_signals, step_execing, step_exec, step_pause, step_self,
	step_pty;

#endif
