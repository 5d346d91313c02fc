/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Run as a payload: one system call by a convention of x86, its answer printed.
 *
 *   convention x86_64|x32|i386 NUMBER ARG ARG ARG
 *   convention socketcall CALL ARG ARG ARG
 *
 * Linked statically, below 4 GiB: the kernel takes 32-bit pointers by int 0x80.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned int in_memory[3];

static long by_syscall(long number, const long *args)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(args[0]), "S"(args[1]), "d"(args[2])
			 : "rcx", "r11", "memory");
	return ret;
}

static long by_interrupt(long number, const long *args)
{
	int ret;

	__asm__ volatile("int $0x80"
			 : "=a"(ret)
			 : "a"(number), "b"(args[0]), "c"(args[1]), "d"(args[2])
			 : "memory");
	return ret;
}

int main(int argc, char **argv)
{
	long number, args[3], ret;

	if (argc != 6)
		return 2;
	number = atol(argv[2]);
	for (int i = 0; i < 3; i++)
		args[i] = atol(argv[3 + i]);
	if (strcmp(argv[1], "socketcall") == 0) {
		long call[3] = { number, (long)in_memory, 0 };

		for (int i = 0; i < 3; i++)
			in_memory[i] = (unsigned int)args[i];
		ret = by_interrupt(102, call);
	} else if (strcmp(argv[1], "i386") == 0) {
		ret = by_interrupt(number, args);
	} else {
		ret = by_syscall(strcmp(argv[1], "x32") ? number : number | 0x40000000, args);
	}
	printf("%ld\n", ret);
	return 0;
}
