/* SPDX-License-Identifier: Apache-2.0 */
/* Maps a plan from its memfd. */
#include "init.h"

#include <sys/mman.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* The seals make the check last: nobody can change or shorten the plan after it. */
void *nsb_plan_map(int fd, size_t *size)
{
	struct statx st;
	void *plan;

	if ((nsb_sys3(__NR_fcntl, fd, F_GET_SEALS, 0) & SEALS) != SEALS)
		return NULL;
	if (nsb_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_SIZE, &st) < 0 ||
	    st.stx_size > NSB_MAX_PLAN || st.stx_size < sizeof(struct nsb_plan))
		return NULL;
	*size = (size_t)st.stx_size;
	plan = (void *)nsb_sys6(__NR_mmap, 0, *size, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_POPULATE * (*size <= 65536), fd, 0);
	if ((unsigned long)plan > -4096UL)
		return NULL;
	if (nsb_plan_check(plan, *size) < 0) {
		nsb_plan_unmap(plan, *size);
		return NULL;
	}
	nsb_plan_relocate(plan);
	return plan;
}

void nsb_plan_unmap(void *plan, size_t size)
{
	nsb_sys2(__NR_munmap, plan, size);
}
