/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checker of plans alone, for the sanitizers: reads plans (a 64-bit size, then the bytes)
 * from standard input, and says for each "ok" or "no".
 */
#include "follow.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
	uint64_t size;

	while (fread(&size, sizeof(size), 1, stdin) == 1) {
		char *plan = malloc(size ? size : 1);

		if (!plan || fread(plan, 1, size, stdin) != size)
			return 2;
		puts(judge_and_follow(plan, size) ? "ok" : "no");
		fflush(stdout);
		free(plan);
	}
	return 0;
}
