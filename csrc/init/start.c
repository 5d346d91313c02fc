/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nsbox-init: one static program without libc, executed from a sealed memfd, that is the
 * launcher, PID 1 of a sandbox, the pause process of a pod, or serves ports of another network
 * namespace. Every page of it that is touched counts.
 */
#include "init.h"

/* gcc may call these for assignments and comparisons of structures. */
void *memset(void *to, int byte, size_t size);
void *memcpy(void *restrict to, const void *restrict from, size_t size);

void *memset(void *to, int byte, size_t size)
{
	char *p = to;

	while (size--) {
		*p++ = (char)byte;
		__asm__ volatile("" : : : "memory"); /* or gcc makes a call of memset out of it */
	}
	return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	char *p = to;
	const char *q = from;

	while (size--) {
		*p++ = *q++;
		__asm__ volatile("" : : : "memory");
	}
	return to;
}

/* Dies without a core file and without waking anybody: what could be said has been said. */
static int main_of(int argc, char **argv)
{
	uint64_t all = ~0ULL;

	sys_sigmask(0, &all, NULL);
	if (sys_prctl(PR_SET_DUMPABLE, 0, 0) < 0 || argc < 2)
		return 125;
	if (nsb_str_equal(argv[1], "launcher"))
		return nsb_launcher_main();
	if (nsb_str_equal(argv[1], "init") && argc == 5)
		return nsb_init_main(nsb_number(argv[2]), nsb_number(argv[3]), nsb_number(argv[4]));
	if (nsb_str_equal(argv[1], "pause"))
		return nsb_pause_main();
	if (nsb_str_equal(argv[1], "proxy"))
		return nsb_proxy_main(argc - 2, argv + 2);
	return 125;
}

_Noreturn void nsb_start(long *stack);

/* The kernel's stack: argc, then argv. */
_Noreturn void nsb_start(long *stack)
{
	sys_exit(main_of((int)stack[0], (char **)(stack + 1)));
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n"
	"\tcall nsb_start\n\thlt\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tb nsb_start\n");
#endif
