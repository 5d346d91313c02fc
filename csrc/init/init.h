/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NSB_INIT_H
#define NSB_INIT_H

#include "../steps.h"

#include <signal.h>
#include <sys/resource.h>

/* Descriptors with which the launcher is started. */
enum { NSB_FD_CONTROL = 3, NSB_FD_EXE, NSB_FD_LOCK, NSB_FD_OWNER, NSB_FD_SELF, NSB_FD_EPOLL };

int nsb_launcher_main(void);
int nsb_init_main(int channel, int plan_fd, int next);
int nsb_pause_main(void);
int nsb_proxy_main(int argc, char **argv);

/* load.c: a plan that is checked and relocated in memory of our own, a sealed file's in a copy of it;
 * NULL: refused. */
struct nsb_plan *nsb_plan_accept(void *plan, size_t size);
struct nsb_plan *nsb_plan_map(int fd, size_t *size);
void nsb_plan_unmap(void *plan, size_t size);

static inline void nsb_wipe(void *memory, size_t size)
{
	char *p = memory;

	while (size--)
		*p++ = 0;
}

/* spawn.c */
struct nsb_spawn {
	struct nsb_ctx *cx;
	bool share;  /* lend the launcher's memory to the child until its execve */
	int go;	     /* forked child: the read end of the launcher's pipe, else -1 */
	int net;     /* a network namespace to join instead of making one, else -1 */
	int ipc;     /* likewise */
	int pid;     /* out: the child */
	int pidfd;   /* out */
	int err;     /* out: of clone3 */
	int map_err; /* out: of the joiner that wrote the id maps */
	const char *map_call;
};

void nsb_spawn(struct nsb_spawn *spawn);
int nsb_write_id_maps(const struct nsb_plan *plan, int pid, const char **call);

/* spare.c: a network and an IPC namespace made ahead, while nothing else is to do. */
int nsb_spare_take_net(bool open_ports);
int nsb_spare_take_ipc(void);
bool nsb_spare_wanted(void);
int nsb_spare_make(void);

/* sweep.c: what is undone when the owner has gone. */
void nsb_sweep_add(const char *text, size_t size);
bool nsb_sweep_run(void);
bool nsb_sweep_shared(void);

/* links.c: deletes the links of this network namespace whose alias begins so; true: none is left. */
bool nsb_links_delete(const char *prefix);

/* shared.c: removes what is not the owner's alone, if that was the last user; true: it has gone. */
bool nsb_shared_leave(int dir, const char *name);

static inline void nsb_record_wait(struct nsb_record *record, const siginfo_t *info,
				   const struct rusage *usage)
{
	record->pid = info->si_pid;
	record->code = info->si_code;
	record->status = info->si_status;
	record->utime_us =
		(uint64_t)usage->ru_utime.tv_sec * 1000000 + (uint64_t)usage->ru_utime.tv_usec;
	record->stime_us =
		(uint64_t)usage->ru_stime.tv_sec * 1000000 + (uint64_t)usage->ru_stime.tv_usec;
	record->maxrss_kib = (uint64_t)usage->ru_maxrss;
	record->inblock = (uint64_t)usage->ru_inblock;
	record->oublock = (uint64_t)usage->ru_oublock;
}

#endif
