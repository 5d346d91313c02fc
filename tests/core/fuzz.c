/* SPDX-License-Identifier: Apache-2.0 */
/* The checker of plans as a target of libFuzzer; tools/fuzz.sh builds it and runs it. */
#include "follow.h"
#include "nsb.h"

#include <stdlib.h>
#include <string.h>

/* libFuzzer's own, declared in no header of C. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned int seed);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *plan = malloc(size ? size : 1);

	if (!plan)
		abort();
	memcpy(plan, data, size);
	judge_and_follow(plan, size);
	free(plan);
	return 0;
}

/* Sets one word of the header or of an op to what a bounds check may get wrong. */
static void set_word(uint8_t *data, size_t size, unsigned int seed)
{
	const struct nsb_plan *plan = (const struct nsb_plan *)(const void *)data;
	size_t pool = sizeof(*plan) + sizeof(struct nsb_op) * (size_t)(plan->nops % NSB_MAX_OPS);
	size_t end = pool < size ? pool : size;
	uint32_t near = seed % 17 - 8, random = seed * 2654435761u;
	uint32_t words[] = { near, (uint32_t)pool + near, (uint32_t)size + near, NSB_MAX_SLOTS + near,
			     0x80000000u + near, random % (uint32_t)size,
			     plan->argv + 8 * near, plan->envp + 8 * near };
	uint32_t word = words[(seed >> 8) % (sizeof(words) / sizeof(words[0]))];

	memcpy(data + (random >> 4) % (end / sizeof(word)) * sizeof(word), &word, sizeof(word));
}

/* Most of what libFuzzer would make by itself has a wrong size or magic, and is refused at once. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned int seed)
{
	struct nsb_plan *plan = (struct nsb_plan *)(void *)data;

	if (seed % 2 && size >= sizeof(*plan))
		set_word(data, size, seed >> 1);
	else
		size = LLVMFuzzerMutate(data, size, most);
	if (seed % 16 && size > sizeof(*plan)) {
		plan->magic = NSB_MAGIC;
		plan->size = (uint32_t)size;
		data[size - 1] = seed % 64 ? 0 : (uint8_t)(seed >> 8);
	}
	return size;
}
