/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw system calls and the few string functions that a program without libc needs. Every
 * wrapper returns the kernel's own answer: a value >= 0, or -errno. This is the only file
 * with #ifdefs: architectures, and constants newer than the oldest headers supported.
 */
#ifndef NSB_SYS_H
#define NSB_SYS_H

#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/if.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <linux/sockios.h>
#include <linux/stat.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/wait.h>

#ifndef CLONE_CLEAR_SIGHAND
#define CLONE_CLEAR_SIGHAND 0x100000000ULL
#endif
#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif
#ifndef OPEN_TREE_CLOEXEC
#define OPEN_TREE_CLOEXEC O_CLOEXEC
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#ifndef MNT_DETACH
#define MNT_DETACH 2
#endif
#ifndef PIDFD_GET_MNT_NAMESPACE
#define PIDFD_GET_MNT_NAMESPACE 0xff03 /* _IO(0xff, 3), Linux 6.9 */
#endif
#ifndef O_PATH
#define O_PATH 010000000
#endif

#if defined(__x86_64__)
static inline long nsb_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* clone3 with a stack of its own: the child runs fn(arg) there and exits with its result. */
static inline long nsb_clone3_call(struct clone_args *args, int (*fn)(void *), void *arg)
{
	register int (*r8)(void *) __asm__("r8") = fn;
	register void *r9 __asm__("r9") = arg;
	long ret;

	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "mov %%r9, %%rdi\n\t"
			 "call *%%r8\n\t"
			 "mov %%eax, %%edi\n\t"
			 "mov %[exit], %%eax\n\t"
			 "syscall\n\t"
			 "hlt\n"
			 "1:"
			 : "=a"(ret)
			 : "a"((long)__NR_clone3), "D"(args), "S"(sizeof(*args)), "r"(r8),
			   "r"(r9), [exit] "i"(__NR_exit_group)
			 : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static inline long nsb_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

static inline long nsb_clone3_call(struct clone_args *args, int (*fn)(void *), void *arg)
{
	register long x8 __asm__("x8") = __NR_clone3;
	register long x0 __asm__("x0") = (long)args;
	register long x1 __asm__("x1") = (long)sizeof(*args);
	register int (*x9)(void *) __asm__("x9") = fn;
	register void *x10 __asm__("x10") = arg;

	__asm__ volatile("svc 0\n\t"
			 "cbnz x0, 1f\n\t"
			 "mov x29, #0\n\t"
			 "mov x0, x10\n\t"
			 "blr x9\n\t"
			 "mov x8, %[exit]\n\t"
			 "svc 0\n"
			 "1:"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x9), "r"(x10), [exit] "i"(__NR_exit_group)
			 : "memory", "x30");
	return x0;
}
#else
#error "nsbox: no system call table for this architecture"
#endif

#define NSB_ARG(x) ((long)(x))
#define nsb_sys0(nr) nsb_syscall(nr, 0, 0, 0, 0, 0, 0)
#define nsb_sys1(nr, a) nsb_syscall(nr, NSB_ARG(a), 0, 0, 0, 0, 0)
#define nsb_sys2(nr, a, b) nsb_syscall(nr, NSB_ARG(a), NSB_ARG(b), 0, 0, 0, 0)
#define nsb_sys3(nr, a, b, c) nsb_syscall(nr, NSB_ARG(a), NSB_ARG(b), NSB_ARG(c), 0, 0, 0)
#define nsb_sys4(nr, a, b, c, d)                                                                   \
	nsb_syscall(nr, NSB_ARG(a), NSB_ARG(b), NSB_ARG(c), NSB_ARG(d), 0, 0)
#define nsb_sys5(nr, a, b, c, d, e)                                                                \
	nsb_syscall(nr, NSB_ARG(a), NSB_ARG(b), NSB_ARG(c), NSB_ARG(d), NSB_ARG(e), 0)
#define nsb_sys6(nr, a, b, c, d, e, f)                                                             \
	nsb_syscall(nr, NSB_ARG(a), NSB_ARG(b), NSB_ARG(c), NSB_ARG(d), NSB_ARG(e), NSB_ARG(f))

/* The calls that several files share. Others are written out where they are used. */
static inline int sys_close(int fd)
{
	return (int)nsb_sys1(__NR_close, fd);
}

static inline int sys_openat(int dir, const char *path, int flags, unsigned int mode)
{
	return (int)nsb_sys4(__NR_openat, dir, path, flags, mode);
}

static inline ssize_t sys_read(int fd, void *buf, size_t size)
{
	return nsb_sys3(__NR_read, fd, buf, size);
}

static inline ssize_t sys_write(int fd, const void *buf, size_t size)
{
	return nsb_sys3(__NR_write, fd, buf, size);
}

/* EINVAL is what fcntl(2) says when RLIMIT_NOFILE allows no number as high as that. */
static inline int sys_dup_above(int fd, int least)
{
	int high = (int)nsb_sys3(__NR_fcntl, fd, F_DUPFD_CLOEXEC, least);

	return high == -EINVAL ? -EMFILE : high;
}

static inline int sys_prctl(int option, unsigned long a, unsigned long b)
{
	return (int)nsb_sys5(__NR_prctl, option, a, b, 0, 0);
}

static inline int sys_sigmask(int how, const uint64_t *set, uint64_t *old)
{
	return (int)nsb_sys4(__NR_rt_sigprocmask, how, set, old, sizeof(*set));
}

static inline int sys_close_range(unsigned int first, unsigned int last, unsigned int flags)
{
	return (int)nsb_sys3(__NR_close_range, first, last, flags);
}

static inline _Noreturn void sys_exit(int code)
{
	for (;;)
		nsb_sys1(__NR_exit_group, code);
}

static inline size_t nsb_strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

static inline bool nsb_str_equal(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

static inline bool nsb_str_starts(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return false;
	return true;
}

/* Decimal text of value at the end of buf[size]; returns its first character. */
static inline char *nsb_decimal(char *buf, size_t size, unsigned int value)
{
	char *p = buf + size - 1;

	*p = 0;
	do {
		*--p = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	return p;
}

/* -1 when text is not a plain decimal number that fits an int. */
static inline int nsb_number(const char *text)
{
	int value = 0;

	if (!*text)
		return -1;
	for (; *text; text++) {
		if (*text < '0' || *text > '9' || value > 100000000)
			return -1;
		value = value * 10 + (*text - '0');
	}
	return value;
}

#endif
