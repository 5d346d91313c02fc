/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounds check of a plan, before anything is cloned. After it, the interpreter may follow
 * every offset without looking again: a string ends before the plan does, because the
 * plan's last byte is NUL.
 */
#include "nsb.h"

#include <errno.h>
#include <stdbool.h>

/* What an operand may be. */
enum operand {
	NIL,  /* unused, 0 */
	NUM,  /* any number */
	STR,  /* string */
	LIST, /* pairs of strings one after another, an empty one ends them; 0: none */
	DATA, /* n bytes; 0: none */
	SLOT, /* a descriptor slot */
};

struct signature {
	uint8_t a, b, c;
};

/* n and m are numbers: their meaning is beside the step in steps.c's table. */
/* clang-format off */
static const struct signature signatures[NSB_OP_MAX] = {
	[NSB_OP_SETNS] = { SLOT, NIL, NIL },
	[NSB_OP_CGROUP] = { SLOT, NIL, NIL },
	[NSB_OP_BARRIER] = { SLOT, NIL, NIL },
	[NSB_OP_SETGROUPS] = { DATA, NIL, NIL },
	[NSB_OP_OPEN_TREE] = { STR, SLOT, NIL },
	[NSB_OP_ROOT_TMPFS] = { LIST, NIL, NIL },
	[NSB_OP_ROOT_OVERLAY] = { LIST, NIL, NIL },
	[NSB_OP_ROOT_TREE] = { SLOT, NIL, NIL },
	[NSB_OP_ATTACH] = { SLOT, STR, NIL },
	[NSB_OP_MOUNT] = { STR, STR, LIST },
	[NSB_OP_MKDIR] = { STR, NIL, NUM },
	[NSB_OP_FILE] = { STR, DATA, NUM },
	[NSB_OP_SYMLINK] = { STR, STR, NIL },
	[NSB_OP_READONLY] = { STR, NIL, NIL },
	[NSB_OP_PROCFS] = { LIST, NIL, NIL },
	[NSB_OP_SYSCTL] = { STR, STR, NIL },
	[NSB_OP_HOSTNAME] = { STR, NIL, NIL },
	[NSB_OP_CHDIR] = { STR, NIL, NIL },
	[NSB_OP_RLIMIT] = { NUM, NIL, NIL },
	[NSB_OP_FD] = { SLOT, NIL, NIL },
	[NSB_OP_EXEC] = { STR, NIL, NIL },
	[NSB_OP_OPEN] = { STR, SLOT, NIL },
	[NSB_OP_PTY] = { SLOT, SLOT, NIL },
	[NSB_OP_SOCKET] = { SLOT, NIL, NIL },
	[NSB_OP_SECCOMP] = { DATA, NIL, NIL },
	[NSB_OP_MKNOD] = { STR, NIL, NIL },
	[NSB_OP_ROOM] = { STR, NIL, NIL },
};
/* clang-format on */

struct span {
	const char *base;
	uint32_t pool, size;
};

static bool in_pool(const struct span *s, uint32_t offset)
{
	return offset >= s->pool && offset < s->size;
}

static bool list_ok(const struct span *s, uint32_t offset)
{
	unsigned int count = 0;

	if (offset == 0)
		return true;
	if (!in_pool(s, offset))
		return false;
	for (; offset < s->size && s->base[offset]; count++) {
		while (s->base[offset])
			offset++;
		offset++;
	}
	return offset < s->size && count % 2 == 0;
}

static bool operand_ok(const struct span *s, uint8_t kind, uint32_t value, uint64_t n)
{
	switch (kind) {
	case NIL:
		return value == 0;
	case NUM:
		return true;
	case STR:
		return in_pool(s, value);
	case LIST:
		return list_ok(s, value);
	case DATA:
		if (value == 0)
			return n == 0;
		return in_pool(s, value) && n <= s->size - value;
	case SLOT:
		return value < NSB_MAX_SLOTS;
	}
	return false;
}

/* Where a vector ends; 0: it is none. */
static uint32_t vector_end(const struct span *s, uint32_t offset)
{
	if (offset % sizeof(uint64_t) || !in_pool(s, offset))
		return 0;
	for (; s->size - offset >= sizeof(uint64_t); offset += (uint32_t)sizeof(uint64_t)) {
		uint64_t entry = *(const uint64_t *)(const void *)(s->base + offset);

		if (entry == 0)
			return offset + (uint32_t)sizeof(uint64_t);
		if (entry >= s->size || !in_pool(s, (uint32_t)entry))
			return 0;
	}
	return 0;
}

/* The entries of both become pointers, each once: they are one vector, or have none in common. */
static bool vectors_ok(const struct nsb_plan *p, const struct span *s)
{
	uint32_t argv_end = p->argv ? vector_end(s, p->argv) : 1;
	uint32_t envp_end = p->envp ? vector_end(s, p->envp) : 1;

	if (!argv_end || !envp_end)
		return false;
	return !p->argv || !p->envp || p->argv == p->envp || argv_end <= p->envp ||
	       envp_end <= p->argv;
}

static bool header_ok(const struct nsb_plan *p, const struct span *s)
{
	if (p->nops == 0 || p->nops > NSB_MAX_OPS || p->njoin > p->nops)
		return false;
	if (p->nfds > NSB_MAX_PASSED || p->cgroup_slot < -1 || p->cgroup_slot >= (int)p->nfds)
		return false;
	if (p->uid_map && (!in_pool(s, p->uid_map) || !in_pool(s, p->gid_map)))
		return false;
	return vectors_ok(p, s);
}

/* 0, or -EINVAL: the plan is not one that nsbox.plan could have encoded. */
int nsb_plan_check(const void *plan, size_t size)
{
	const struct nsb_plan *p = plan;
	const struct nsb_op *ops = (const struct nsb_op *)(p + 1);
	struct span s = { .base = plan };

	if (size < sizeof(*p) + sizeof(*ops) || size > NSB_MAX_PLAN)
		return -EINVAL;
	if (p->magic != NSB_MAGIC || p->size != size || p->nops > NSB_MAX_OPS)
		return -EINVAL;
	s.size = p->size;
	s.pool = (uint32_t)(sizeof(*p) + p->nops * sizeof(*ops));
	if (s.pool >= s.size || s.base[s.size - 1] != 0 || !header_ok(p, &s))
		return -EINVAL;
	for (uint32_t i = 0; i < p->nops; i++) {
		const struct nsb_op *op = &ops[i];
		const struct signature *sig;

		if (op->code == NSB_OP_NONE || op->code >= NSB_OP_MAX)
			return -EINVAL;
		sig = &signatures[op->code];
		if (!operand_ok(&s, sig->a, op->a, op->n) ||
		    !operand_ok(&s, sig->b, op->b, op->n) || !operand_ok(&s, sig->c, op->c, op->n))
			return -EINVAL;
	}
	return 0;
}

static void relocate(char *base, uint32_t offset)
{
	uint64_t *entry = (uint64_t *)(void *)(base + offset);

	if (offset == 0)
		return;
	for (; *entry; entry++)
		*entry += (uint64_t)(uintptr_t)base;
}

void nsb_plan_relocate(void *plan)
{
	struct nsb_plan *p = plan;

	relocate(plan, p->argv);
	if (p->envp != p->argv)
		relocate(plan, p->envp);
}
