/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps that build the mount tree. Everything is made as a detached mount first and then
 * moved onto a descriptor, so that no path is looked up twice.
 */
#include "steps.h"

#include <linux/kdev_t.h>

/* mount(2) flags, which <linux/mount.h> has too; only MS_REC|MS_PRIVATE or MS_SLAVE come here. */
int step_propagation(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "mount";
	return (int)nsb_sys5(__NR_mount, 0, "/", 0, op->n, 0);
}

static int set_attrs(struct nsb_ctx *cx, int fd, uint64_t attrs, unsigned int flags)
{
	struct mount_attr attr = { .attr_set = attrs };

	cx->call = "mount_setattr";
	return (int)nsb_sys5(__NR_mount_setattr, fd, "", AT_EMPTY_PATH | flags, &attr,
			     sizeof(attr));
}

/* /dev/null in somebody's tree may be a symlink to anything: look at what was opened. */
static int check_device(struct nsb_ctx *cx, int fd, uint64_t device)
{
	struct statx st;
	int err;

	cx->call = "statx";
	err = (int)nsb_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &st);
	if (err < 0)
		return err;
	if ((st.stx_mode & S_IFMT) != S_IFCHR ||
	    MKDEV((uint64_t)st.stx_rdev_major, st.stx_rdev_minor) != device)
		return -ENODEV;
	return 0;
}

/* A detached copy of a tree of the host's; its source is the caller's own path. */
int step_open_tree(struct nsb_ctx *cx, const struct nsb_op *op)
{
	unsigned int recursive = op->flags & NSB_RECURSIVE ? AT_RECURSIVE : 0;
	int err, fd;

	cx->call = "open_tree";
	fd = (int)nsb_sys3(__NR_open_tree, AT_FDCWD, nsb_str(cx, op->a),
			   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive);
	if (fd < 0)
		return fd;
	if (op->flags & NSB_CHRDEV) {
		err = check_device(cx, fd, op->n);
		if (err < 0)
			return err;
	}
	cx->slots[op->b] = fd;
	return op->m ? set_attrs(cx, fd, op->m, recursive) : 0;
}

static int move_onto(struct nsb_ctx *cx, int mount, int target)
{
	cx->call = "move_mount";
	return (int)nsb_sys5(__NR_move_mount, mount, "", target, "",
			     MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

/* Pairs "key", "=value", or "key", "!" for a flag: fsconfig takes each as it is, so no comma,
 * colon or backslash in a value can become a second option. */
static int set_options(struct nsb_ctx *cx, int fs, const char *options)
{
	int err = 0;

	cx->call = "fsconfig";
	while (*options && err == 0) {
		const char *value = options + nsb_strlen(options) + 1;
		unsigned int command = *value == '=' ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;

		err = (int)nsb_sys5(__NR_fsconfig, fs, command, options,
				    command == FSCONFIG_SET_FLAG ? NULL : value + 1, 0);
		options = value + nsb_strlen(value) + 1;
	}
	if (err == 0)
		err = (int)nsb_sys5(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
	return err;
}

int nsb_new_mount(struct nsb_ctx *cx, const char *type, const char *options, uint64_t attrs)
{
	int err, fs, mount;

	cx->call = "fsopen";
	fs = (int)nsb_sys2(__NR_fsopen, type, FSOPEN_CLOEXEC);
	if (fs < 0)
		return fs;
	err = set_options(cx, fs, options);
	if (err < 0) {
		sys_close(fs);
		return err;
	}
	cx->call = "fsmount";
	mount = (int)nsb_sys3(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attrs);
	sys_close(fs);
	return mount;
}

/*
 * The new root is mounted over "/" of this private namespace: path lookups go on at the old
 * root below it, and no directory of the host is needed to hold it until pivot_root.
 */
static int become_root(struct nsb_ctx *cx, int mount)
{
	int err, slash;

	cx->call = "openat";
	slash = sys_openat(AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (slash < 0)
		return slash;
	err = move_onto(cx, mount, slash);
	sys_close(slash);
	cx->root = mount;
	return err;
}

int step_root_tmpfs(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int mount = nsb_new_mount(cx, "tmpfs", op->a ? nsb_str(cx, op->a) : "", op->n);

	return mount < 0 ? mount : become_root(cx, mount);
}

/* Its layers were attached to the root so far, which it covers: their names there are short and
 * plain, whatever the host calls them. The child stays in that directory until it pivots. */
int step_root_overlay(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err, mount;

	cx->call = "fchdir";
	err = (int)nsb_sys1(__NR_fchdir, cx->root);
	if (err < 0)
		return err;
	mount = nsb_new_mount(cx, "overlay", nsb_str(cx, op->a), op->n);
	return mount < 0 ? mount : become_root(cx, mount);
}

int step_root_tree(struct nsb_ctx *cx, const struct nsb_op *op)
{
	if (op->flags & NSB_AS_IS)
		cx->root = cx->slots[op->a];
	return op->flags & NSB_AS_IS ? 0 : become_root(cx, cx->slots[op->a]);
}

int step_root_here(struct nsb_ctx *cx, const struct nsb_op *op)
{
	(void)op;
	cx->call = "openat";
	cx->root = sys_openat(AT_FDCWD, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	return cx->root < 0 ? cx->root : 0;
}

static int make_target(struct nsb_ctx *cx, const char *path, bool directory)
{
	const struct nsb_op op = { .n = 0755 };
	size_t length = nsb_strlen(path);
	const char *name;
	int fd, parent;

	while (!directory && length && path[--length] != '/')
		;
	fd = nsb_make_dirs(cx, path, length, &op);
	if (fd < 0 || directory)
		return fd;
	parent = nsb_parent_in_root(cx, path, &name);
	if (parent < 0)
		return parent;
	cx->call = "openat";
	fd = sys_openat(parent, name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
	sys_close(parent);
	if (fd >= 0)
		sys_close(fd);
	return fd < 0 ? fd : 0;
}

/* EOVERFLOW: the file system has no number for who would own it. */
static bool cannot_be_had(int err)
{
	return err == -ENOENT || err == -EACCES || err == -EPERM || err == -EROFS ||
	       err == -EOVERFLOW;
}

static int attach(struct nsb_ctx *cx, const char *path, unsigned int flags, int mount,
		  bool directory)
{
	int err, target;

	target = nsb_in_root(cx, path, O_PATH);
	if (target == -ENOENT && flags & NSB_MAKE_TARGET) {
		target = make_target(cx, path, directory);
		if (target == 0)
			target = nsb_in_root(cx, path, O_PATH);
	}
	if (target < 0)
		return flags & NSB_IF_POSSIBLE && cannot_be_had(target) ? 0 : target;
	err = move_onto(cx, mount, target);
	sys_close(target);
	return err;
}

int step_attach(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct statx st;
	int err;

	cx->call = "statx";
	err = (int)nsb_sys5(__NR_statx, cx->slots[op->a], "", AT_EMPTY_PATH, STATX_TYPE, &st);
	if (err < 0)
		return err;
	return attach(cx, nsb_str(cx, op->b), op->flags, cx->slots[op->a],
		      (st.stx_mode & S_IFMT) == S_IFDIR);
}

int step_mount(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err, mount;

	mount = nsb_new_mount(cx, nsb_str(cx, op->a), op->c ? nsb_str(cx, op->c) : "", op->n);
	if (mount < 0)
		return mount;
	err = attach(cx, nsb_str(cx, op->b), op->flags, mount, true);
	sys_close(mount);
	return err;
}

/* A tree that is one new file, on a tmpfs that has nothing else. It can be copied out of that only
 * while that is attached (open_tree(2)): for a moment over the root, below which lookups go on. */
static int file_tree(struct nsb_ctx *cx, const struct nsb_op *op, int tmpfs, int here)
{
	static const char name[] = "file";
	int err, tree, fd;

	cx->call = "openat";
	fd = sys_openat(tmpfs, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	err = fd < 0 ? fd : nsb_fill_file(cx, op, fd);
	if (err == 0)
		err = move_onto(cx, tmpfs, cx->root);
	if (err < 0)
		return err;
	cx->call = "open_tree";
	tree = (int)nsb_sys3(__NR_open_tree, tmpfs, name, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return tree;
	cx->call = "umount2";
	err = (int)nsb_sys1(__NR_fchdir, tmpfs);
	if (err == 0)
		err = (int)nsb_sys2(__NR_umount2, ".", MNT_DETACH);
	if (err == 0)
		err = (int)nsb_sys1(__NR_fchdir, here);
	if (err < 0)
		sys_close(tree);
	return err < 0 ? err : tree;
}

int nsb_file_over(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err, here, tree, tmpfs;

	cx->call = "openat";
	here = sys_openat(AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
	if (here < 0)
		return here;
	tmpfs = nsb_new_mount(cx, "tmpfs", "", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	tree = tmpfs < 0 ? tmpfs : file_tree(cx, op, tmpfs, here);
	sys_close(here);
	if (tmpfs >= 0)
		sys_close(tmpfs);
	if (tree < 0)
		return tree;
	err = set_attrs(cx, tree, MOUNT_ATTR_RDONLY, 0);
	if (err == 0)
		err = attach(cx, nsb_str(cx, op->a), op->flags, tree, false);
	sys_close(tree);
	return err;
}

int step_readonly(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err, fd = nsb_in_root(cx, nsb_str(cx, op->a), O_PATH);

	if (fd < 0)
		return fd;
	err = set_attrs(cx, fd, op->n, op->flags & NSB_RECURSIVE ? AT_RECURSIVE : 0);
	sys_close(fd);
	return err;
}

/* pivot_root(".", ".") stacks the old root over the new one, where umount takes it away; over it
 * are the n roots that were there between, each of which hides it from umount. */
int step_pivot(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err;

	cx->call = "fchdir";
	err = (int)nsb_sys1(__NR_fchdir, cx->root);
	if (err < 0)
		return err;
	cx->call = "pivot_root";
	err = (int)nsb_sys2(__NR_pivot_root, ".", ".");
	if (err < 0)
		return err;
	cx->call = "umount2";
	for (uint64_t left = op->n + 1; left && err == 0; left--)
		err = (int)nsb_sys2(__NR_umount2, ".", MNT_DETACH);
	if (err < 0)
		return err;
	cx->call = "chdir";
	return (int)nsb_sys1(__NR_chdir, "/");
}

int step_chroot(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err;

	(void)op;
	cx->call = "fchdir";
	err = (int)nsb_sys1(__NR_fchdir, cx->root);
	if (err < 0)
		return err;
	cx->call = "chroot";
	return (int)nsb_sys1(__NR_chroot, ".");
}
