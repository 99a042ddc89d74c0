// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loaded by LD_PRELOAD into the QEMU that writes to shared volumes: the kernel ends it when its lease does.
 *
 * A service that stands still, or is late, cannot take back what it has asked of QEMU. So the lease is a timer of the kernel's,
 * set from the service while a write is under way: its signal is SIGKILL, which no thread has to be scheduled for. And a
 * connection that ends so must not deliver what it has in its buffer: SO_LINGER with 0 seconds resets it instead.
 *
 * HOLDFAST_LEASE_FD is the number of a connected SOCK_SEQPACKET socket. A message is a struct order in the machine's own
 * byte order; with `answer` set it comes back once it is in force.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct order {
	uint64_t until; /* CLOCK_MONOTONIC, ns; 0: no write is under way */
	uint64_t answer;
};

static timer_t lease;
static int orders = -1;

static void *obey(void *unused)
{
	struct order order;

	(void)unused;
	while (recv(orders, &order, sizeof(order), 0) == sizeof(order)) {
		struct itimerspec at = { .it_value = { order.until / 1000000000u, order.until % 1000000000u } };

		/* A moment that is past ends us at once. */
		if (timer_settime(lease, TIMER_ABSTIME, &at, NULL))
			abort();
		if (order.answer && send(orders, &order, sizeof(order), MSG_NOSIGNAL) != sizeof(order))
			break;
	}
	return NULL; /* the service is gone: what is set stays set */
}

__attribute__((constructor)) static void holdfast_lease(void)
{
	const char *number = getenv("HOLDFAST_LEASE_FD");
	struct sigevent kill = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
	sigset_t all, before;
	pthread_t thread;

	if (!number)
		return;
	orders = atoi(number);
	unsetenv("HOLDFAST_LEASE_FD");
	unsetenv("LD_PRELOAD");
	if (timer_create(CLOCK_MONOTONIC, &kill, &lease))
		abort();
	/* QEMU's signals are for QEMU's threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, obey, NULL))
		abort();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int socket(int domain, int type, int protocol)
{
	static int (*real)(int, int, int);
	const struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "socket");
	int fd = real(domain, type, protocol);
	if (fd >= 0 && (domain == AF_INET || domain == AF_INET6) && (type & 0xf) == SOCK_STREAM)
		(void)!setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	return fd;
}
