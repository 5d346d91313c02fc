/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between nsbox (Python), the launcher and the interpreter of plans.
 *
 *   owner (Python)                launcher (nsbox-init)               child
 *     | SPAWN, channel, plan, fds -> |                                   |
 *     |                              | clone3 -------------------------> |
 *     |                              | id maps, then one byte --------> | (user namespace)
 *     | <- SPAWNED, pidfd ---------- |                                   | op, op, op ...
 *     | <------------------------------------------------ BARRIER ------ |
 *     | ------------------------------------------------- one byte ----> |
 *     | <------------------------------------------------ ROOM --------- | waits for nobody
 *     | <------------------------------------------------ EXECING ------ | execve
 *     | <- STARTED ----------------- |  (from PID 1 when it is nsbox-init)
 *     | <- ENDED, wait status ------ | waitid
 *
 * FAILED may take the place of anything up to STARTED. All records of one spawn travel on
 * its own SOCK_SEQPACKET channel, in the order in which they were written.
 *
 * csrc/build_ffi.py reads the marked region verbatim, so it holds no preprocessor lines.
 */
#ifndef NSB_H
#define NSB_H

#include <stddef.h>
#include <stdint.h>

/* >>> cffi */
enum nsb_limits {
	NSB_MAGIC = 0x3142534e, /* "NSB1", little endian */
	NSB_MAX_PLAN = 1 << 30, /* bytes */
	NSB_MAX_OPS = 4096,
	NSB_MAX_PASSED = 32, /* descriptors passed with one request */
	NSB_MAX_TEXT = 8184, /* bytes in one request */
	NSB_MAX_SLOTS = 160, /* passed descriptors and detached trees of one plan */
	NSB_NONE = 0x7fffffff,
};

/* One op, one effect that the kernel can see. csrc/plan.c says what a, b, c, n and m mean. */
enum nsb_opcode {
	NSB_OP_NONE,
	NSB_OP_SETNS,
	NSB_OP_UNSHARE,
	NSB_OP_CGROUP,
	NSB_OP_BARRIER,
	NSB_OP_SETGROUPS,
	NSB_OP_SETGID,
	NSB_OP_SETUID,
	NSB_OP_PROPAGATION,
	NSB_OP_OPEN_TREE,
	NSB_OP_ROOT_TMPFS,
	NSB_OP_ROOT_TREE,
	NSB_OP_ROOT_HERE,
	NSB_OP_ATTACH,
	NSB_OP_MOUNT,
	NSB_OP_MKDIR,
	NSB_OP_FILE,
	NSB_OP_SYMLINK,
	NSB_OP_READONLY,
	NSB_OP_PIVOT,
	NSB_OP_CHROOT,
	NSB_OP_PROCFS,
	NSB_OP_SYSCTL,
	NSB_OP_LO_UP,
	NSB_OP_HOSTNAME,
	NSB_OP_UMASK,
	NSB_OP_CHDIR,
	NSB_OP_RLIMIT,
	NSB_OP_KEYRING,
	NSB_OP_SETSID,
	NSB_OP_BOUNDING,
	NSB_OP_SECUREBITS,
	NSB_OP_CAPS,
	NSB_OP_AMBIENT,
	NSB_OP_NO_NEW_PRIVS,
	NSB_OP_DUMPABLE,
	NSB_OP_PDEATHSIG,
	NSB_OP_FD,
	NSB_OP_CLOEXEC,
	NSB_OP_INIT,
	NSB_OP_SIGNALS,
	NSB_OP_EXECING,
	NSB_OP_EXEC,
	NSB_OP_PAUSE,
	NSB_OP_OPEN,
	NSB_OP_PTY,
	NSB_OP_ROOT_OVERLAY,
	NSB_OP_SOCKET,
	NSB_OP_LANDLOCK,
	NSB_OP_SECCOMP,
	NSB_OP_SELF,
	NSB_OP_MKNOD,
	NSB_OP_ROOM,
	NSB_OP_MAX,
};

enum nsb_op_flag {
	NSB_IGNORE_ENOENT = 1, /* exec: this directory of PATH does not have it */
	NSB_RECURSIVE = 2,     /* open_tree, readonly: submounts too */
	NSB_CHRDEV = 4,	       /* open_tree: refuse what is not character device n */
	NSB_MAKE_TARGET = 8,   /* attach, mount: make the destination when it is missing */
	NSB_CHOWN = 16,	       /* mkdir: new directories belong to c:m */
	NSB_AS_IS = 32,	       /* procfs, root_tree: the one that is there, not a new mount */
	NSB_IF_POSSIBLE = 64,  /* attach: go without a destination that cannot be had */
	NSB_OVER = 128,	       /* file: mounted, over what is there */
};

struct nsb_op {
	uint16_t code;
	uint16_t flags;
	uint32_t a;
	uint32_t b;
	uint32_t c;
	uint64_t n;
	uint64_t m;
};

enum nsb_plan_flag {
	NSB_PLAN_DENY_SETGROUPS = 1,
	NSB_PLAN_INIT = 2,	    /* PID 1 is nsbox-init: it announces STARTED and EXITED */
	NSB_PLAN_FORK = 4,	    /* never share the launcher's memory (set-up may block) */
	NSB_PLAN_SPARE_NET = 8,	    /* NEWNET, and NEWIPC, may be what the launcher has ready */
	NSB_PLAN_LAUNCHER_NET = 16, /* NEWNET has to be one that the launcher made */
	NSB_PLAN_INNER_MAP = 32,    /* the id maps are the joiner's to write */
};

/* A plan: this header, nops ops, then a pool. Offsets count from the plan's first byte. */
struct nsb_plan {
	uint32_t magic;
	uint32_t size;
	uint32_t nops;
	uint32_t njoin; /* ops[0, njoin) run before clone3, in a joiner */
	uint32_t nfds;	/* slots 0 .. nfds-1 are the passed descriptors */
	uint32_t flags;
	uint32_t uid_map; /* text for /proc/PID/uid_map, 0: the launcher writes none */
	uint32_t gid_map;
	int32_t cgroup_slot; /* cgroup v2 directory for CLONE_INTO_CGROUP, -1: none */
	uint32_t fail_at;    /* op index failed on purpose, or an nsb_at */
	int32_t fail_errno;
	uint32_t argv; /* vectors: 8-aligned uint64 offsets of strings, then 0 */
	uint32_t envp;
	uint32_t reserved;
	uint64_t clone_flags;
};

/* Places of failure that are not ops. */
enum nsb_at {
	NSB_AT_NOWHERE = 0x7fffff00,
	NSB_AT_REQUEST,
	NSB_AT_CLONE,
	NSB_AT_ID_MAP,
	NSB_AT_NET,
};

enum nsb_kind {
	NSB_SPAWNED = 1, /* pid; carries the pidfd */
	NSB_STARTED,	 /* the payload's execve succeeded */
	NSB_BARRIER,	 /* op: waits for one byte from the owner; may carry a tree */
	NSB_EXECING,	 /* everything up to execve succeeded */
	NSB_FAILED,	 /* op, err, call */
	NSB_EXITED,	 /* nsbox-init: the payload's wait status */
	NSB_ENDED,	 /* launcher: the child's wait status and usage */
	NSB_ROOM,	 /* op; carries a directory */
};

struct nsb_record {
	uint32_t kind;
	uint32_t op;
	int32_t err;
	int32_t pid;
	int32_t code;	/* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
	int32_t status; /* exit code or signal */
	uint64_t utime_us;
	uint64_t stime_us;
	uint64_t maxrss_kib;
	uint64_t inblock; /* of 512 bytes, from and to disks */
	uint64_t oublock;
	char call[16];
};

/* Descriptors that came with the records of one set-up; -1: none. */
struct nsb_handed {
	int pidfd;
	int tree; /* by a BARRIER */
	int room; /* by ROOM */
};

enum nsb_request_kind {
	NSB_REQ_SPAWN =
		1,     /* text: the plan. Descriptors: channel, the plan if not in text, slots */
	NSB_REQ_SWEEP, /* text: directory, NUL, name prefix, NUL; undone on owner death */
};

struct nsb_request {
	uint32_t kind;
	uint32_t size;
	char text[NSB_MAX_TEXT];
};

int nsb_plan_check(const void *plan, size_t size);
int nsb_launcher_start(int exe, int control, int lock, int owner_pidfd);
int nsb_submit(int control, const void *plan, size_t size, const int *fds, unsigned int nfds);
int nsb_sweep(int control, const char *text, size_t size);
int nsb_receive(int channel, struct nsb_record *record, int *fd, int timeout_ms);
int nsb_await_start(int channel, struct nsb_record *record, struct nsb_handed *handed,
		    int timeout_ms);
long nsb_raw(long nr, long a, long b, long c, long d, long e);
int nsb_view(uint64_t *view, unsigned int count);
void nsb_view_forget(void);
/* <<< cffi */

/* Turns the offsets in argv and envp into pointers, once, in a private copy of a checked plan. */
void nsb_plan_relocate(void *plan);

#endif
