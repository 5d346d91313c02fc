/* SPDX-License-Identifier: Apache-2.0 */
/* What trusts a plan, without its effects: the second half of the runner and of the fuzzer. */
#include "follow.h"

#include "nsb.h"

#include <string.h>

static volatile size_t sink;

static const char *text(const char *base, uint32_t offset)
{
	sink += strlen(base + offset);
	return base + offset;
}

/* As set_options of step_mount.c walks it. */
static void list(const char *base, uint32_t offset)
{
	const char *at = base + offset;

	while (offset && *at) {
		const char *value = at + strlen(at) + 1;

		sink += *value == '=';
		at = value + strlen(value) + 1;
	}
}

static void data(const char *base, uint32_t offset, uint64_t size)
{
	for (uint64_t i = 0; offset && i < size; i++)
		sink += (unsigned char)base[offset + i];
}

static void vector(char *base, uint32_t offset)
{
	for (char **at = (char **)(void *)(base + offset); offset && *at; at++)
		sink += strlen(*at);
}

static void slot(uint32_t number)
{
	static const char slots[NSB_MAX_SLOTS];

	sink += (unsigned char)slots[number];
}

static void follow_strings(const char *base, const struct nsb_op *op)
{
	switch (op->code) {
	case NSB_OP_MOUNT:
		list(base, op->c);
		/* fall through */
	case NSB_OP_SYMLINK:
	case NSB_OP_SYSCTL:
		text(base, op->b);
		/* fall through */
	case NSB_OP_OPEN_TREE:
	case NSB_OP_OPEN:
	case NSB_OP_MKDIR:
	case NSB_OP_MKNOD:
	case NSB_OP_ROOM:
	case NSB_OP_FILE:
	case NSB_OP_READONLY:
	case NSB_OP_HOSTNAME:
	case NSB_OP_CHDIR:
	case NSB_OP_EXEC:
		text(base, op->a);
		break;
	case NSB_OP_ROOT_TMPFS:
	case NSB_OP_ROOT_OVERLAY:
	case NSB_OP_PROCFS:
		list(base, op->a);
		break;
	case NSB_OP_ATTACH:
		text(base, op->b);
		break;
	}
}

static void follow_rest(const char *base, const struct nsb_op *op)
{
	switch (op->code) {
	case NSB_OP_FILE:
		data(base, op->b, op->n);
		break;
	case NSB_OP_SETGROUPS:
		data(base, op->a, op->n);
		break;
	case NSB_OP_PTY:
		slot(op->a);
		/* fall through */
	case NSB_OP_OPEN_TREE:
	case NSB_OP_OPEN:
		slot(op->b);
		break;
	case NSB_OP_SETNS:
	case NSB_OP_CGROUP:
	case NSB_OP_ROOT_TREE:
	case NSB_OP_ATTACH:
	case NSB_OP_FD:
		slot(op->a);
		break;
	}
}

static void follow(char *base)
{
	const struct nsb_plan *plan = (const struct nsb_plan *)(void *)base;
	const struct nsb_op *ops = (const struct nsb_op *)(plan + 1);

	nsb_plan_relocate(base);
	vector(base, plan->argv);
	vector(base, plan->envp);
	if (plan->uid_map) {
		text(base, plan->uid_map);
		text(base, plan->gid_map);
	}
	for (uint32_t i = 0; i < plan->nops; i++) {
		follow_strings(base, &ops[i]);
		follow_rest(base, &ops[i]);
	}
}

int judge_and_follow(char *plan, size_t size)
{
	if (nsb_plan_check(plan, size) != 0)
		return 0;
	follow(plan);
	return 1;
}
