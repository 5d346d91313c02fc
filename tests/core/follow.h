/* SPDX-License-Identifier: Apache-2.0 */
#ifndef FOLLOW_H
#define FOLLOW_H

#include <stddef.h>

/*
 * Judges the plan in the *size* bytes at *plan*, a block of exactly that size, and follows every
 * offset of one that was taken, as the interpreter would: a promise that the checker does not keep
 * is a read that the sanitizer sees. Changes the block. 1: taken, 0: refused.
 */
int judge_and_follow(char *plan, size_t size);

#endif
