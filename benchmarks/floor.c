/* SPDX-License-Identifier: Apache-2.0 */
/*
 * floor ROOT: what the kernel itself asks for one spawn and wait, without any library.
 *
 * A long-lived process, driven over its standard input, so that a caller can interleave it with
 * anything else. One command a line, one answer a line:
 *
 *     caller                          floor
 *       | -- "naive /bin/true" -------> |  clone ... exec ... waitpid, timed here
 *       | <------- "ok 2503112" ------- |  elapsed nanoseconds (CLOCK_MONOTONIC); the child exited 0
 *       | <------- "err TEXT" --------- |  it did not; what the child says of it is on stderr
 *
 * Variants:
 *   bare      clone(VM|VFORK) + exec of ROOT's file; no isolation
 *   naive     what a careful C programmer writes first: a fork-like clone into six namespaces,
 *             private propagation, read-only bind of ROOT, tmpfs /dev with six nodes, proc,
 *             pivot_root, umount of the old root, lo up, exec
 *   naive-unshare  the same steps by way of unshare(2), which asks for a second fork before pid 1
 *   template  the same sandbox for less: ROOT and /dev are mounted once, in a template mount
 *             namespace; each spawn is clone(VM|VFORK|FILES) into five namespaces, setns(template),
 *             unshare(NEWNS), proc, lo up, exec
 *
 * "Six namespaces" is mnt, pid, ipc, uts, net, cgroup. Needs CAP_SYS_ADMIN.
 * clone(2) is used through its libc wrapper: no flag above 32 bits is needed, and the kernel's path
 * is clone3's own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdalign.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FIVE_NS (CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP)
#define STACK_SIZE 65536

static FILE *in, *out;          /* the driver's lines; not the children's standard streams */
static const char *root;        /* the rootfs, an absolute path */
static int template_fd = -1;    /* the template's mount namespace */
static const char *exec_path;   /* what the next child executes */
static alignas(16) char stack[STACK_SIZE];

/* Reached only when a measurement is lost anyway, so stdio after a CLONE_VM clone does no harm. */
static void __attribute__((noreturn)) die(const char *call)
{
	dprintf(STDERR_FILENO, "floor: %s: %s\n", call, strerror(errno));
	_exit(127);
}

static void must(int result, const char *call)
{
	if (result < 0)
		die(call);
}

/* ---- the steps both sandboxes are made of ------------------------------------------------- */

static void lo_up(void)
{
	struct ifreq req = { .ifr_name = "lo" };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	must(sock, "socket");
	must(ioctl(sock, SIOCGIFFLAGS, &req), "SIOCGIFFLAGS");
	req.ifr_flags = (short)(req.ifr_flags | IFF_UP);
	must(ioctl(sock, SIOCSIFFLAGS, &req), "SIOCSIFFLAGS");
	close(sock);
}

static void make_dev(void)
{
	static const struct { const char *name; unsigned int major, minor; } nodes[] = {
		{ "dev/null", 1, 3 },   { "dev/zero", 1, 5 },    { "dev/full", 1, 7 },
		{ "dev/random", 1, 8 }, { "dev/urandom", 1, 9 }, { "dev/tty", 5, 0 },
	};

	must(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k"), "mount /dev");
	umask(0);
	for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++)
		must(mknod(nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)),
		     nodes[i].name);
}

/* ROOT, bound onto itself and read-only, becomes the working directory. */
static void bind_root(void)
{
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make / private");
	must(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind root");
	must(mount(NULL, root, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL), "remount root ro");
	must(chdir(root), "chdir root");
}

static void mount_proc(const char *where)
{
	must(mount("proc", where, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "mount proc");
}

/* pivot_root(".", ".") stacks the old root on the new one, where one umount takes it away. */
static void pivot(void)
{
	must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount old root");
	must(chdir("/"), "chdir /");
}

static void __attribute__((noreturn)) exec_payload(void)
{
	char *argv[] = { (char *)(uintptr_t)exec_path, NULL };
	char *envp[] = { (char *)(uintptr_t)"PATH=/bin", NULL };

	execve(exec_path, argv, envp);
	die(exec_path);
}

/* ---- the variants ------------------------------------------------------------------------- */

static int child_bare(void *unused)
{
	(void)unused;
	exec_payload();
}

static int child_naive(void *unused)
{
	(void)unused;
	bind_root();
	make_dev();
	mount_proc("proc");
	pivot();
	lo_up();
	exec_payload();
}

static int child_naive_unshare(void *unused)
{
	int status = 0;
	pid_t pid;

	(void)unused;
	must(unshare(CLONE_NEWNS | FIVE_NS), "unshare");
	pid = fork(); /* unshare(CLONE_NEWPID) takes effect in children only */
	must(pid, "fork");
	if (pid == 0)
		child_naive(NULL);
	must(waitpid(pid, &status, 0), "waitpid");
	_exit(status == 0 ? 0 : 127);
}

static int child_template(void *unused)
{
	(void)unused;
	must(setns(template_fd, CLONE_NEWNS), "setns template");
	/* Until here the descriptor table is the parent's: nothing may be opened or closed in it. */
	must(close_range(3, ~0U, CLOSE_RANGE_UNSHARE), "close_range");
	must(unshare(CLONE_NEWNS), "unshare mnt");
	mount_proc("/proc");
	lo_up();
	exec_payload();
}

static const struct variant {
	const char *name;
	int flags;
	int (*child)(void *);
	int in_root; /* the payload's path is resolved in ROOT by the sandbox itself */
} variants[] = {
	{ "bare", CLONE_VM | CLONE_VFORK, child_bare, 0 },
	{ "naive", CLONE_NEWNS | FIVE_NS, child_naive, 1 },
	{ "naive-unshare", 0, child_naive_unshare, 1 },
	{ "template", CLONE_VM | CLONE_VFORK | CLONE_FILES | FIVE_NS, child_template, 1 },
};

/* ---- the template ------------------------------------------------------------------------- */

static int child_build_template(void *pipe_fds)
{
	const int *fds = pipe_fds;
	char byte;

	bind_root();
	make_dev();
	/* One superblock serves every sandbox made from the template, so nobody may write to it. */
	must(mount(NULL, "dev", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, NULL),
	     "remount /dev ro");
	pivot();
	must((int)write(fds[1], "k", 1), "write");
	must((int)read(fds[0], &byte, 1), "read"); /* stay until the parent holds the namespace */
	return 0;
}

static void build_template(void)
{
	int up[2], down[2], ends[2];
	char path[64], byte;
	pid_t pid;

	must(pipe2(up, O_CLOEXEC), "pipe2");
	must(pipe2(down, O_CLOEXEC), "pipe2");
	ends[0] = down[0];
	ends[1] = up[1];
	pid = clone(child_build_template, stack + STACK_SIZE, CLONE_NEWNS | SIGCHLD, ends);
	must(pid, "clone");
	close(up[1]);
	if (read(up[0], &byte, 1) != 1)
		exit(1); /* the child said why */
	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	template_fd = open(path, O_RDONLY | O_CLOEXEC);
	must(template_fd, path);
	must((int)write(down[1], "k", 1), "write");
	close(up[0]);
	close(down[0]);
	close(down[1]);
	must(waitpid(pid, NULL, 0), "waitpid");
}

/* ---- one command -------------------------------------------------------------------------- */

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void spawn(const struct variant *v)
{
	int64_t start = now_ns(), end;
	int status = 0;
	pid_t pid = clone(v->child, stack + STACK_SIZE, v->flags | SIGCHLD, NULL);

	if (pid < 0) {
		fprintf(out, "err clone: %s\n", strerror(errno));
		return;
	}
	if (waitpid(pid, &status, 0) != pid) {
		fprintf(out, "err waitpid: %s\n", strerror(errno));
		return;
	}
	end = now_ns();
	if (status != 0)
		fprintf(out, "err wait status %d\n", status);
	else
		fprintf(out, "ok %lld\n", (long long)(end - start));
}

static void command(char *line)
{
	static char path[PATH_MAX];
	char *save = NULL, *name = strtok_r(line, " \n", &save), *file = strtok_r(NULL, " \n", &save);

	for (size_t i = 0; name && file && i < sizeof(variants) / sizeof(variants[0]); i++) {
		if (strcmp(name, variants[i].name) != 0)
			continue;
		snprintf(path, sizeof(path), "%s%s", variants[i].in_root ? "" : root, file);
		exec_path = path;
		spawn(&variants[i]);
		return;
	}
	fprintf(out, "err expected: VARIANT PATH\n");
}

/* Children get /dev/null to read and our stderr to write, so that none can speak to the driver. */
static void split_streams(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	must(null, "/dev/null");
	in = fdopen(fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3), "r");
	out = fdopen(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3), "w");
	if (!in || !out)
		die("fdopen");
	must(dup2(null, STDIN_FILENO), "dup2");
	must(dup2(STDERR_FILENO, STDOUT_FILENO), "dup2");
	close(null);
	setvbuf(out, NULL, _IOLBF, 0);
}

int main(int argc, char **argv)
{
	char line[PATH_MAX];

	if (argc != 2 || argv[1][0] != '/') {
		fprintf(stderr, "usage: floor /absolute/rootfs\n");
		return 2;
	}
	root = argv[1];
	split_streams();
	build_template();
	fprintf(out, "ready\n");
	while (fgets(line, sizeof(line), in))
		command(line);
	return 0;
}
