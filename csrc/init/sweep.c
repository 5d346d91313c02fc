/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Undo for an owner that died: in each registered directory, cgroups whose names begin with
 * the owner's prefix are emptied and removed, and links are deleted whose alias does. The owner
 * registers a directory before it makes anything there; its registry file says the same to gc(),
 * and goes when all is done. What it shares with others has a prefix of its own.
 */
#include "init.h"

#define TEXT_SIZE 16384
#define DIRECTORY 4 /* DT_DIR */

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

static char texts[TEXT_SIZE];
static size_t used;

void nsb_sweep_add(const char *text, size_t size)
{
	if (size > TEXT_SIZE - used || size < 4 || text[size - 1] || text[size - 2] == 0)
		return;
	for (size_t i = 0; i < size; i++)
		texts[used++] = text[i];
}

/* Kills every process of a cgroup that no pid namespace took along. */
static void kill_members(int cgroup)
{
	char buf[4096];
	int fd = sys_openat(cgroup, "cgroup.procs", O_RDONLY | O_CLOEXEC, 0);
	ssize_t got;
	int pid = 0;

	if (fd < 0)
		return;
	while ((got = sys_read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < got; i++) {
			if (buf[i] >= '0' && buf[i] <= '9') {
				pid = pid * 10 + (buf[i] - '0');
			} else {
				if (pid > 0)
					nsb_sys2(__NR_kill, pid, SIGKILL);
				pid = 0;
			}
		}
	sys_close(fd);
}

static void put(int cgroup, const char *file, const char *word)
{
	int fd = sys_openat(cgroup, file, O_WRONLY | O_CLOEXEC, 0);

	if (fd >= 0) {
		sys_write(fd, word, nsb_strlen(word));
		sys_close(fd);
	}
}

typedef bool remove_fn(int parent, const struct dirent64 *entry, unsigned int depth);

static bool each_matching(int dir, const char *prefix, unsigned int depth, remove_fn *remove);

static bool is_shared(const struct dirent64 *entry)
{
	return nsb_str_starts(entry->name, "net-");
}

static bool remove_file(int parent, const struct dirent64 *entry, unsigned int depth)
{
	(void)depth;
	return entry->type == DIRECTORY || is_shared(entry) ||
	       nsb_sys3(__NR_unlinkat, parent, entry->name, 0) >= 0;
}

static bool leave_shared(int parent, const struct dirent64 *entry, unsigned int depth)
{
	(void)depth;
	return entry->type == DIRECTORY || !is_shared(entry) ||
	       nsb_shared_leave(parent, entry->name);
}

static bool remove_cgroup(int parent, const struct dirent64 *entry, unsigned int depth)
{
	const char *name = entry->name;
	int dir;

	if (entry->type != DIRECTORY)
		return true;
	dir = sys_openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
	if (dir < 0)
		return true;
	put(dir, "cgroup.kill", "1"); /* v2: whoever forks faster than a list is read, too */
	kill_members(dir);
	put(dir, "freezer.state", "THAWED"); /* v1: the frozen do not die before */
	if (depth < 16)
		each_matching(dir, "", depth + 1, remove_cgroup);
	sys_close(dir);
	return nsb_sys3(__NR_unlinkat, parent, name, AT_REMOVEDIR) >= 0;
}

static bool is_dots(const char *name)
{
	return nsb_str_equal(name, ".") || nsb_str_equal(name, "..");
}

/* Calls remove for each entry with this prefix; true: nothing is left to do here. */
static bool each_matching(int dir, const char *prefix, unsigned int depth, remove_fn *remove)
{
	char buf[4096] __attribute__((aligned(8)));
	bool done = true;
	long got;

	while ((got = nsb_sys3(__NR_getdents64, dir, buf, sizeof(buf))) > 0)
		for (long i = 0; i < got;) {
			const struct dirent64 *entry = (const void *)(buf + i);

			i += entry->reclen;
			if (!is_dots(entry->name) && nsb_str_starts(entry->name, prefix))
				done &= remove(dir, entry, depth);
		}
	return done;
}

static bool each_place(remove_fn *remove)
{
	bool done = true;

	for (size_t i = 0; i < used;) {
		const char *path = texts + i;
		const char *prefix = path + nsb_strlen(path) + 1;
		int dir = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);

		i = (size_t)(prefix - texts) + nsb_strlen(prefix) + 1;
		if (dir < 0)
			continue;
		done &= each_matching(dir, prefix, 0, remove);
		sys_close(dir);
	}
	return done;
}

/* A place that is no directory stands for the links of the launcher's network namespace. */
static bool each_link(void)
{
	bool done = true;

	for (size_t i = 0; i < used;) {
		const char *path = texts + i;
		const char *prefix = path + nsb_strlen(path) + 1;

		i = (size_t)(prefix - texts) + nsb_strlen(prefix) + 1;
		if (path[0] != '/')
			done &= nsb_links_delete(prefix);
	}
	return done;
}

/* Files last: as long as one is there, gc() knows where to go on, should this be killed too. */
bool nsb_sweep_run(void)
{
	return each_place(remove_cgroup) && each_link() && each_place(remove_file);
}

bool nsb_sweep_shared(void)
{
	return each_place(leave_shared);
}
