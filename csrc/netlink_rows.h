/* SPDX-License-Identifier: Apache-2.0 */
/* Which attribute of a message holds which field of struct nsb_rt. */
#ifndef NSBOX_NETLINK_ROWS_H
#define NSBOX_NETLINK_ROWS_H

#include "netlink.h"

#include <stddef.h>
#include <stdint.h>

enum how {
	NUMBER,	 /* size bytes, in the machine's order */
	INDEX,	 /* uint32, where ~0 stands for 0 */
	NETNS,	 /* a descriptor + 1 */
	STRING,	 /* ends with NUL, has at most size bytes */
	ADDRESS, /* address_size bytes */
	BYTES,	 /* size bytes */
	SEEN,	 /* BYTES of answers alone */
	NEST,	 /* the rows up to END, or nothing when they say nothing */
	OPTIONS, /* NEST of the rows that belong to the type */
	MADE,	 /* an attribute that is worked out of several fields */
	HEADER,	 /* the same, without the attribute's header */
	END,
};

typedef size_t make_fn(const struct nsb_rt *rt, void *out);

struct row {
	uint16_t type;
	uint8_t how;
	uint8_t size;
	uint16_t at;
	make_fn *make;
};

struct object {
	uint16_t message; /* RTM_NEW…; the next are RTM_DEL… and RTM_GET… */
	uint16_t header;
	const struct row *rows;
};

extern const struct object nsb_rt_objects[NSB_RT_OBJECTS];

/* The rows of OPTIONS that belong to rt's type. */
const struct row *nsb_rt_options(const struct nsb_rt *rt);
/* After the END of the nest that begins at row. */
const struct row *nsb_rt_after(const struct row *row);

#endif
