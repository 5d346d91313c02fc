/* SPDX-License-Identifier: Apache-2.0 */
/* Takes a plan out of its memfd, or where it is. */
#include "init.h"

#include <sys/mman.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE)

/* Most plans are small, and reading one is cheaper than mapping it. */
static char small[16384] __attribute__((aligned(16)));

static void *take(int fd, size_t size)
{
	void *plan = small;

	if (size <= sizeof(small))
		return nsb_sys4(__NR_pread64, fd, small, size, 0) == (long)size ? plan : NULL;
	plan = (void *)nsb_sys6(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	return (unsigned long)plan > -4096UL ? NULL : plan;
}

/* In memory that nobody else writes. */
struct nsb_plan *nsb_plan_accept(void *plan, size_t size)
{
	if (nsb_plan_check(plan, size) < 0)
		return NULL;
	nsb_plan_relocate(plan);
	return plan;
}

/* The seals make the check last: an owner maps no plan, so nobody can change or shorten it. */
struct nsb_plan *nsb_plan_map(int fd, size_t *size)
{
	struct statx st;
	void *plan;

	if ((nsb_sys3(__NR_fcntl, fd, F_GET_SEALS, 0) & SEALS) != SEALS)
		return NULL;
	if (nsb_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st) < 0 ||
	    st.stx_size > NSB_MAX_PLAN || st.stx_size < sizeof(struct nsb_plan))
		return NULL;
	*size = (size_t)st.stx_size;
	plan = take(fd, *size);
	if (plan && !nsb_plan_accept(plan, *size)) {
		nsb_plan_unmap(plan, *size);
		return NULL;
	}
	return plan;
}

/* What one sandbox was told is not to be read in the memory of the next one's set-up. */
void nsb_plan_unmap(void *plan, size_t size)
{
	if (plan != (void *)small)
		nsb_sys2(__NR_munmap, plan, size);
	else
		nsb_wipe(plan, size);
}
