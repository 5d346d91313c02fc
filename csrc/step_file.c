/* SPDX-License-Identifier: Apache-2.0 */
/* Steps that make directories and files in the new root, and write sysctls. */
#include "steps.h"

/* Opens path as the payload will see it: below the new root, through no magic link. */
static int open_below(struct nsb_ctx *cx, const char *path, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)(unsigned int)(flags | O_CLOEXEC),
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};

	cx->call = "openat2";
	return (int)nsb_sys4(__NR_openat2, cx->root, path, &how, sizeof(how));
}

int nsb_in_root(struct nsb_ctx *cx, const char *path, int flags)
{
	return open_below(cx, path, flags);
}

/* Opens the directory that holds path, and points name at the last component. */
int nsb_parent_in_root(struct nsb_ctx *cx, const char *path, const char **name)
{
	char parent[4096];
	size_t slash = 0, length = nsb_strlen(path);

	cx->call = "openat2";
	if (length >= sizeof(parent))
		return -ENAMETOOLONG;
	for (size_t i = 0; i < length; i++) {
		parent[i] = path[i];
		if (path[i] == '/')
			slash = i;
	}
	parent[slash] = 0;
	*name = path + slash + (path[slash] == '/');
	return open_below(cx, slash ? parent : "/", O_PATH | O_DIRECTORY);
}

static int make_dir(struct nsb_ctx *cx, const char *path, uint64_t mode, const struct nsb_op *op)
{
	const char *name;
	int err, fd = nsb_parent_in_root(cx, path, &name);

	if (fd < 0)
		return fd;
	cx->call = "mkdirat";
	err = (int)nsb_sys3(__NR_mkdirat, fd, name, mode);
	if (err == 0 && op->flags & NSB_CHOWN) {
		cx->call = "fchownat";
		err = (int)nsb_sys5(__NR_fchownat, fd, name, op->c, op->m, AT_SYMLINK_NOFOLLOW);
	}
	sys_close(fd);
	if (err != -EEXIST)
		return err;
	/* Another sandbox of this root was quicker; or it is a link that leads nowhere. */
	fd = open_below(cx, path, O_PATH | O_DIRECTORY);
	cx->call = "mkdirat";
	if (fd < 0)
		return err;
	sys_close(fd);
	return 0;
}

/* Makes what is missing of the first length bytes of path, one component at a time, each looked
 * up in the root anew: a symlink on the way leads to where the payload would be led, never to the
 * host. op has what step_mkdir's has but the path. */
int nsb_make_dirs(struct nsb_ctx *cx, const char *path, size_t length, const struct nsb_op *op)
{
	char prefix[4096];

	cx->call = "mkdirat";
	if (length >= sizeof(prefix))
		return -ENAMETOOLONG;
	for (size_t i = 1; i <= length; i++) {
		int err, fd;

		prefix[i - 1] = path[i - 1];
		if (i < length && path[i] != '/')
			continue;
		prefix[i] = 0;
		fd = open_below(cx, prefix, O_PATH | O_DIRECTORY);
		if (fd >= 0) {
			sys_close(fd);
			continue;
		}
		err = fd == -ENOENT ? make_dir(cx, prefix, i < length ? 0755 : op->n, op) : fd;
		if (err < 0)
			return err;
	}
	return 0;
}

int step_mkdir(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *path = nsb_str(cx, op->a);

	return nsb_make_dirs(cx, path, nsb_strlen(path), op);
}

static int write_all(struct nsb_ctx *cx, int fd, const char *data, uint64_t size)
{
	cx->call = "write";
	while (size) {
		ssize_t done = sys_write(fd, data, size);

		if (done == -EINTR)
			continue;
		if (done <= 0)
			return done ? (int)done : -EIO;
		data += done;
		size -= (uint64_t)done;
	}
	return 0;
}

/* What the op of a file says, into one that is new; it is closed then. */
int nsb_fill_file(struct nsb_ctx *cx, const struct nsb_op *op, int fd)
{
	int err = write_all(cx, fd, nsb_str(cx, op->b), op->n);

	if (err == 0 && op->c != UINT32_MAX) {
		cx->call = "fchown";
		err = (int)nsb_sys3(__NR_fchown, fd, op->c, op->m >> 32);
	}
	if (err == 0) {
		cx->call = "fchmod"; /* the umask has no say in a mode that was asked for */
		err = (int)nsb_sys2(__NR_fchmod, fd, op->m & 07777);
	}
	sys_close(fd);
	return err;
}

int step_file(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *name;
	int fd, parent;

	if (op->flags & NSB_OVER)
		return nsb_file_over(cx, op);
	parent = nsb_parent_in_root(cx, nsb_str(cx, op->a), &name);
	if (parent < 0)
		return parent;
	cx->call = "openat";
	fd = sys_openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	sys_close(parent);
	return fd < 0 ? fd : nsb_fill_file(cx, op, fd);
}

/* Whether a link that is there says just that. */
static bool says(int parent, const char *name, const char *target)
{
	char said[4096];
	long got = nsb_sys4(__NR_readlinkat, parent, name, said, sizeof(said));
	long i = 0;

	while (i < got && target[i] && said[i] == target[i])
		i++;
	return i == got && target[i] == 0;
}

int step_symlink(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *name;
	int err, parent = nsb_parent_in_root(cx, nsb_str(cx, op->b), &name);

	if (parent < 0)
		return parent;
	cx->call = "symlinkat";
	err = (int)nsb_sys3(__NR_symlinkat, nsb_str(cx, op->a), parent, name);
	if (err == -EEXIST && says(parent, name, nsb_str(cx, op->a)))
		err = 0; /* in a root that is kept, from the last time */
	sys_close(parent);
	return err;
}

/* A character device for everybody, of the new root's own: no mount, and no inode of the host's. */
int step_mknod(struct nsb_ctx *cx, const struct nsb_op *op)
{
	const char *name;
	int err, parent = nsb_parent_in_root(cx, nsb_str(cx, op->a), &name);

	if (parent < 0)
		return parent;
	cx->call = "mknodat";
	err = (int)nsb_sys4(__NR_mknodat, parent, name, S_IFCHR, op->n);
	if (err == 0) {
		cx->call = "fchmodat"; /* past the umask */
		err = (int)nsb_sys3(__NR_fchmodat, parent, name, 0666);
	}
	sys_close(parent);
	return err;
}

/* For the owner, which asks it how full the file system is when the sandbox has ended. */
int step_room(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct nsb_record record = { .kind = NSB_ROOM, .op = cx->at };
	int fd = open_below(cx, nsb_str(cx, op->a), O_PATH | O_DIRECTORY);

	if (fd < 0)
		return fd;
	nsb_send(cx->channel, &record, fd);
	sys_close(fd);
	return 0;
}

/* A procfs that is attached nowhere: no mount that a payload prepared can redirect a write. */
int step_procfs(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "openat";
	if (op->flags & NSB_AS_IS) /* a joiner's: it is still where only the owner has mounted */
		cx->proc = sys_openat(AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	else
		cx->proc = nsb_new_mount(cx, "proc", op->a ? nsb_str(cx, op->a) : "", 0);
	return cx->proc < 0 ? cx->proc : 0;
}

/* Writes a file below the private procfs: a sysctl, or self/oom_score_adj. */
int step_sysctl(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct open_how how = {
		.flags = O_WRONLY | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS,
	};
	const char *value = nsb_str(cx, op->b);
	int err, fd;

	cx->call = "openat2";
	fd = (int)nsb_sys4(__NR_openat2, cx->proc, nsb_str(cx, op->a), &how, sizeof(how));
	if (fd < 0)
		return fd;
	err = write_all(cx, fd, value, nsb_strlen(value));
	sys_close(fd);
	return err;
}

/* A working directory outside the root would be a door (CVE-2024-21626): the kernel says so. */
int step_chdir(struct nsb_ctx *cx, const struct nsb_op *op)
{
	char where[4096];
	ssize_t length;
	int err;

	cx->call = "chdir";
	err = (int)nsb_sys1(__NR_chdir, nsb_str(cx, op->a));
	if (err < 0)
		return err;
	cx->call = "getcwd";
	length = nsb_sys2(__NR_getcwd, where, sizeof(where));
	if (length < 0)
		return (int)length;
	return where[0] == '/' ? 0 : -EXDEV;
}
