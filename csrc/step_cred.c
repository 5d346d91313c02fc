/* SPDX-License-Identifier: Apache-2.0 */
/* Steps that change who the payload is, and what it may ask of the kernel. Order: bounding set,
 * groups, gid, uid, capabilities, no_new_privs, Landlock, and the filter last of all. */
#include "steps.h"

#include <linux/filter.h>
#include <linux/seccomp.h>

int step_setgroups(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "setgroups";
	return (int)nsb_sys2(__NR_setgroups, op->n / sizeof(uint32_t),
			     op->a ? nsb_str(cx, op->a) : NULL);
}

int step_setgid(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "setresgid";
	return (int)nsb_sys3(__NR_setresgid, op->n, op->n, op->n);
}

int step_setuid(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "setresuid";
	return (int)nsb_sys3(__NR_setresuid, op->n, op->n, op->n);
}

/* Drops all but n from the bounding set; the kernel answers EINVAL past its last capability. */
int step_bounding(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "prctl";
	for (unsigned int cap = 0; cap < 64; cap++) {
		int err;

		if (op->n >> cap & 1)
			continue;
		err = sys_prctl(PR_CAPBSET_DROP, cap, 0);
		if (err == -EINVAL)
			break;
		if (err < 0)
			return err;
	}
	return 0;
}

int step_securebits(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "prctl";
	return sys_prctl(PR_SET_SECUREBITS, op->n, 0);
}

int step_caps(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	for (unsigned int i = 0; i < 2; i++) {
		data[i].effective = (uint32_t)(op->n >> (32 * i));
		data[i].permitted = data[i].effective;
		data[i].inheritable = (uint32_t)(op->m >> (32 * i));
	}
	cx->call = "capset";
	return (int)nsb_sys2(__NR_capset, &header, data);
}

int step_ambient(struct nsb_ctx *cx, const struct nsb_op *op)
{
	cx->call = "prctl";
	for (unsigned int cap = 0; cap < 64; cap++) {
		int err = 0;

		if (op->n >> cap & 1)
			err = (int)nsb_sys5(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap,
					    0, 0);
		if (err < 0)
			return err;
	}
	return 0;
}

int step_no_new_privs(struct nsb_ctx *cx, const struct nsb_op *op)
{
	(void)op;
	cx->call = "prctl";
	return sys_prctl(PR_SET_NO_NEW_PRIVS, 1, 0);
}

/* Keyrings are in no namespace: without a session keyring of its own the payload has ours. */
int step_keyring(struct nsb_ctx *cx, const struct nsb_op *op)
{
	int err;

	(void)op;
	cx->call = "keyctl";
	err = (int)nsb_sys2(__NR_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	return err < 0 ? err : 0;
}

/* A Landlock domain that has no rules, but scopes (Linux 6.12): its processes connect to abstract
 * sockets of, and send signals to, each other only. What is outside reaches in as before. */
int step_landlock(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct {
		uint64_t fs, net, scoped;
	} attr = { .scoped = op->n }; /* struct landlock_ruleset_attr, which older headers cut */
	int ruleset, err;

	cx->call = "landlock_create_ruleset";
	ruleset = (int)nsb_sys3(__NR_landlock_create_ruleset, &attr, sizeof(attr), 0);
	if (ruleset < 0)
		return ruleset;
	cx->call = "landlock_restrict_self";
	err = (int)nsb_sys2(__NR_landlock_restrict_self, ruleset, 0);
	sys_close(ruleset);
	return err;
}

/* Of this thread, and of all that comes of it. no_new_privs was set before. */
int step_seccomp(struct nsb_ctx *cx, const struct nsb_op *op)
{
	struct sock_fprog program = {
		.len = (unsigned short)(op->n / sizeof(struct sock_filter)),
		.filter = (void *)(cx->base + op->a),
	};

	cx->call = "seccomp";
	return (int)nsb_sys3(__NR_seccomp, SECCOMP_SET_MODE_FILTER, op->m, &program);
}
