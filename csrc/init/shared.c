/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that the owner shared with others of its network namespace, see nsbox/shared.py: whoever
 * can have the lock of one alone is its last user, and clears up. A killed owner cannot, so it is
 * done here. Those of forwarding tell how settings were before, see nsbox/forwarding.py, whose
 * undo() does as this does. What fails here, or is not as expected, is left to gc().
 */
#include "init.h"

#include <sys/file.h>

#define SIZE (1 << 20)
#define END "\nend\n"

static char text[SIZE];

/* Where the next list begins; NULL: this one is not whole. */
static char *after(char *list)
{
	for (; *list; list++)
		if (nsb_str_starts(list, END))
			return list + sizeof(END) - 1;
	return NULL;
}

static char *after_line(char *line)
{
	while (*line && *line++ != '\n')
		;
	return line;
}

/* Makes a setting what its line "name v" says. Or the line, if the setting is not as the switch
 * has left it: others have changed it since, and it is to stay so. */
static bool settle(int conf, char *line, char *value, bool set)
{
	char left = nsb_str_equal(line, "all/accept_redirects") ? '0' : '1', now;
	int fd = sys_openat(conf, line, (set ? O_RDWR : O_RDONLY) | O_CLOEXEC, 0);
	bool done = fd == -ENOENT; /* its interface has gone */

	if (sys_read(fd, &now, 1) == 1) {
		if (!set && now != left)
			*value = now;
		done = !set || now == *value || nsb_sys4(__NR_pwrite64, fd, value, 1, 0) == 1;
	}
	sys_close(fd);
	return done;
}

/* The first line names the network namespace. false: a line cannot be understood, or done. */
static bool settle_all(int conf, char *list, bool set)
{
	for (char *line = after_line(list); !nsb_str_starts(line, END + 1);) {
		char *value = line;
		bool done;

		while (*value && *value != ' ')
			value++;
		if (!*value || value[2] != '\n')
			return false;
		*value = 0;
		done = settle(conf, line, value + 1, set);
		*value = ' ';
		if (!done)
			return false;
		line = value + 3;
	}
	return true;
}

/* Before anything is set, the file tells what is to be: whoever finds this half done goes on. */
static bool undo(int fd, int conf)
{
	long got = nsb_sys4(__NR_pread64, fd, text, SIZE - 1, 0), size;
	char *list;

	if (got < 0 || got == SIZE - 1)
		return false;
	text[got] = 0;
	list = after(text);
	if (!list)
		return true; /* nothing was done yet */
	if (!after(list)) {
		if (!nsb_str_starts(after_line(text), "all/forwarding 0\n"))
			return true; /* nor when it was on before */
		size = list - text;
		list = text;
		if (!settle_all(conf, list, false) || nsb_sys2(__NR_ftruncate, fd, size) < 0 ||
		    nsb_sys4(__NR_pwrite64, fd, text, size, size) != size)
			return false;
	}
	return settle_all(conf, list, true);
}

static bool undo_any(int fd, const char *name)
{
	char path[] = "/proc/sys/net/ipv4/conf";
	bool done;
	int conf;

	while (*name && !nsb_str_starts(name, "-forwarding"))
		name++;
	if (!*name)
		return true;
	path[sizeof("/proc/sys/net/ipv") - 1] = name[sizeof("-forwarding") - 1];
	conf = sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	done = conf >= 0 && undo(fd, conf);
	sys_close(conf);
	return done;
}

bool nsb_shared_leave(int dir, const char *name)
{
	int fd = sys_openat(dir, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC, 0);
	struct statx st = { .stx_nlink = 0 };
	bool done = fd == -ENOENT;

	/* Without a name it was removed, by somebody who had the lock before. */
	if (nsb_sys2(__NR_flock, fd, LOCK_EX | LOCK_NB) >= 0 &&
	    nsb_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_NLINK, &st) >= 0)
		done = st.stx_nlink == 0 ||
		       (undo_any(fd, name) && nsb_sys3(__NR_unlinkat, dir, name, 0) >= 0);
	sys_close(fd);
	return done;
}
