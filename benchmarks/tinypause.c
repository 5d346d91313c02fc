/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for a signal, without libc: what an idle sandbox costs without its payload. */

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "tinypause: add ppoll(2) for this architecture"
#endif

void _start(void) __attribute__((noreturn, used));

void _start(void)
{
	for (;;) {
#if defined(__x86_64__)
		__asm__ volatile("mov $34, %%eax\n\tsyscall" ::: "rax", "rcx", "r11", "memory");
#else /* ppoll of nothing, without a time limit */
		__asm__ volatile("mov x0, #0\n\tmov x1, #0\n\tmov x2, #0\n\tmov x3, #0\n\t"
				 "mov x8, #73\n\tsvc #0" ::: "x0", "x1", "x2", "x3", "x8", "memory");
#endif
	}
}
