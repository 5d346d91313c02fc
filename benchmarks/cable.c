/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox's cable, by raw rtnetlink in C: what csrc/netlink.c sends for nsbox, from a program
 * that does nothing else. Each line on standard input is a pid and a link's name; the answer is
 * how many nanoseconds a veth pair took, from the port of the bridge to the default route.
 */
#include "netlink.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int route_socket(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0)
		die("socket");
	return fd;
}

static void enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		die(path);
	close(fd);
}

static void must(int fd, const struct nsb_rt *requests, unsigned int count)
{
	struct nsb_rt_fault fault;

	memset(&fault, 0, sizeof(fault));
	if (nsb_rt_talk(fd, requests, count, &fault) < 0) {
		fprintf(stderr, "request %u: %s\n", fault.request, fault.text);
		exit(1);
	}
}

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int home = -1;

static long long plug(int here, unsigned int bridge, int pid, const char *name)
{
	struct nsb_rt pair = { .object = NSB_RT_LINK, .verb = NSB_RT_ADD, .type = "veth",
			       .peer = "eth0", .flags = IFF_UP, .change = IFF_UP };
	struct nsb_rt inside[3] = {
		{ .object = NSB_RT_LINK, .verb = NSB_RT_SET, .index = 2, .flags = IFF_UP,
		  .change = IFF_UP },
		{ .object = NSB_RT_ADDRESS, .verb = NSB_RT_ADD, .index = 2, .family = AF_INET,
		  .address_size = 4, .prefix = 24, .address = { 10, 99, 0, 2 } },
		{ .object = NSB_RT_ROUTE, .verb = NSB_RT_ADD, .index = 2, .family = AF_INET,
		  .address_size = 4, .gateway = { 10, 99, 0, 1 } },
	};
	char path[64];
	long long start;
	int there;

	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	enter(path);
	there = route_socket();
	if (setns(home, CLONE_NEWNET) < 0)
		die("setns");
	snprintf(pair.name, sizeof(pair.name), "%s", name);
	pair.master = bridge;
	pair.peer_netns_pid = (unsigned int)pid;
	start = now_ns();
	must(here, &pair, 1);
	must(there, inside, 3);
	start = now_ns() - start;
	close(there);
	return start;
}

int main(int argc, char **argv)
{
	char name[16];
	int here, pid;

	home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	here = route_socket();
	if (argc != 2 || home < 0)
		die("usage: cable BRIDGE_INDEX");
	while (scanf("%d %15s", &pid, name) == 2) {
		printf("%lld\n", plug(here, (unsigned int)atoi(argv[1]), pid, name));
		fflush(stdout);
	}
	return 0;
}
