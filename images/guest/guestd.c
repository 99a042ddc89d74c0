// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The guest's own services in one process and one poll loop, so that a hundred clients cost no fork:
 *
 *   port 7  echo: every byte comes back.
 *   port 9  control: a line in, a line out.
 *             dirty PAGES [PERIOD_MS]   write to PAGES pages (4 KiB each), all of them once per period
 *                                       (default 10 ms); 0 stops it             -> "ok PAGES PERIOD_MS"
 *             status                                                            -> "dirty PAGES PERIOD_MS PASSES"
 *             write DISK OFFSET LENGTH SEED     put the pattern of SEED there, on disk DISK (0 is /dev/vda)
 *             check DISK OFFSET LENGTH SEED     is it there? The pattern of seed 0 is zeros
 *             zero DISK OFFSET LENGTH | trim DISK OFFSET LENGTH
 *                                       -> "ok" when the disk has done it and flushed, "differs at BYTE", "error ..."
 *           anything else                                                       -> "error ..."
 *
 * It is process 1, and says HOLDFAST GUEST READY once redis and httpd answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ECHO_PORT = 7, CONTROL_PORT = 9, REDIS_PORT = 6379, HTTP_PORT = 80 };
enum { MAX_CONNECTIONS = 1024, BUFFER = 16384, PAGE = 4096, MAX_PAGES = 1 << 20 };
enum { SECTOR = 512, MOST_DISK_BYTES = 64 << 20 };
enum { ECHO_LISTENER, CONTROL_LISTENER, FIRST_CLIENT };

struct connection {
	char *buffer;	/* echo: what the client has not taken yet; control: the line so far */
	size_t start, end;
	int control;
};

static struct pollfd polls[MAX_CONNECTIONS];
static struct connection connections[MAX_CONNECTIONS];
static int used = FIRST_CLIENT;

static struct dirtier {
	pid_t pid;
	long pages, period_ms;
	volatile uint64_t *passes;	/* shared with the child that counts them */
} dirtier;

static void die(const char *what)
{
	fprintf(stderr, "guestd: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static int listen_on(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int on = 1, fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&any, sizeof(any)) || listen(fd, 512))
		die("listen");
	return fd;
}

static void drop(int i)
{
	close(polls[i].fd);
	free(connections[i].buffer);
	used--;
	polls[i] = polls[used];
	connections[i] = connections[used];
}

static void take_connections(int listener)
{
	int on = 1, fd;

	while ((fd = accept4(polls[listener].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		char *buffer = used < MAX_CONNECTIONS ? malloc(BUFFER) : NULL;

		if (!buffer) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		polls[used] = (struct pollfd){ .fd = fd, .events = POLLIN };
		connections[used] = (struct connection){ .buffer = buffer, .control = listener == CONTROL_LISTENER };
		used++;
	}
}

/* One write per page, a different value each pass, then sleep for the rest of the period. */
static void keep_dirtying(long pages, long period_ms)
{
	struct timespec next;
	volatile uint64_t *memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("memory to dirty");
	clock_gettime(CLOCK_MONOTONIC, &next);
	for (;;) {
		uint64_t pass = ++*dirtier.passes;

		for (long page = 0; page < pages; page++)
			memory[page * (PAGE / sizeof(*memory))] = pass;
		next.tv_nsec += period_ms % 1000 * 1000000;
		next.tv_sec += period_ms / 1000 + next.tv_nsec / 1000000000;
		next.tv_nsec %= 1000000000;
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
	}
}

static void set_dirtier(long pages, long period_ms)
{
	if (dirtier.pid > 0) {
		kill(dirtier.pid, SIGKILL);
		waitpid(dirtier.pid, NULL, 0);
	}
	dirtier.pid = 0;
	dirtier.pages = pages;
	dirtier.period_ms = period_ms;
	*dirtier.passes = 0;
	if (!pages)
		return;
	dirtier.pid = fork();
	if (dirtier.pid < 0)
		die("fork");
	if (dirtier.pid == 0) {
		for (int i = 0; i < used; i++)
			close(polls[i].fd);
		prctl(PR_SET_NAME, "dirtier");
		keep_dirtying(pages, period_ms);
	}
}

static void answer(int fd, const char *format, ...)
{
	char line[128];
	va_list args;

	va_start(args, format);
	int length = vsnprintf(line, sizeof(line), format, args);

	va_end(args);
	/* A client that does not read a short line loses it. */
	if (send(fd, line, length, MSG_NOSIGNAL) < 0)
		return;
}

/* A block of words that no other seed and place gives: splitmix64. */
static void fill(uint64_t *words, size_t count, uint64_t seed, uint64_t first)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t z = seed * 0x9e3779b97f4a7c15 + (first + i) * 0xbf58476d1ce4e5b9;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
		z = (z ^ z >> 27) * 0x94d049bb133111eb;
		words[i] = seed ? z ^ z >> 31 : 0;
	}
}

/* What a disk command does; returns what to answer. Past the page cache: it is the disk that is asked. */
static const char *use_disk(const char *verb, long disk, uint64_t offset, uint64_t length, uint64_t seed, char *room)
{
	char path[] = { '/', 'd', 'e', 'v', '/', 'v', 'd', 'a' + disk, 0 };
	uint64_t range[] = { offset, length };
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	uint64_t *wanted, *found;

	if (fd < 0)
		return strerror(errno);
	if (!strcmp(verb, "zero"))
		return ioctl(fd, BLKZEROOUT, range) || fsync(fd) ? strerror(errno) : NULL;
	if (!strcmp(verb, "trim"))
		return ioctl(fd, BLKDISCARD, range) || fsync(fd) ? strerror(errno) : NULL;
	if (posix_memalign((void **)&wanted, PAGE, length) || posix_memalign((void **)&found, PAGE, length))
		return "no memory";
	fill(wanted, length / sizeof(*wanted), seed, offset / sizeof(*wanted));
	if (!strcmp(verb, "write"))
		return pwrite(fd, wanted, length, offset) != (ssize_t)length || fsync(fd) ? strerror(errno) : NULL;
	if (pread(fd, found, length, offset) != (ssize_t)length)
		return strerror(errno);
	for (size_t i = 0; i < length / sizeof(*found); i++)
		if (found[i] != wanted[i]) {
			sprintf(room, "differs at %llu", (unsigned long long)(offset + i * sizeof(*found)));
			return room;
		}
	return NULL;
}

/* In a process of its own: a disk that does not answer must not silence the rest. */
static void obey_disk(int fd, const char *verb, long disk, uint64_t offset, uint64_t length, uint64_t seed)
{
	char room[64];
	const char *wrong;
	int data = !strcmp(verb, "write") || !strcmp(verb, "check");

	if (disk < 0 || disk > 15 || !length || (offset | length) % SECTOR || (data && length > MOST_DISK_BYTES)) {
		answer(fd, "error DISK (0 to 15) OFFSET LENGTH (sectors, 64 MiB of data) SEED\n");
		return;
	}
	switch (fork()) {
	case -1:
		answer(fd, "error %s\n", strerror(errno));
		return;
	case 0:
		prctl(PR_SET_NAME, "disk");
		wrong = use_disk(verb, disk, offset, length, seed, room);
		if (!wrong)
			answer(fd, "ok\n");
		else
			answer(fd, "%s%s\n", wrong == room ? "" : "error ", wrong);
		_exit(0);
	}
}

static void obey(int fd, const char *line)
{
	unsigned long long offset, length, seed = 0;
	char verb[6];
	long disk;

	long pages, period_ms = 10;

	if (sscanf(line, "dirty %ld %ld", &pages, &period_ms) >= 1) {
		if (pages < 0 || pages > MAX_PAGES || period_ms < 1 || period_ms > 60000) {
			answer(fd, "error dirty PAGES (0 to %d) PERIOD_MS (1 to 60000)\n", MAX_PAGES);
			return;
		}
		set_dirtier(pages, period_ms);
		answer(fd, "ok %ld %ld\n", pages, period_ms);
	} else if (!strcmp(line, "status")) {
		answer(fd, "dirty %ld %ld %llu\n", dirtier.pages, dirtier.period_ms,
		       (unsigned long long)*dirtier.passes);
	} else if (sscanf(line, "%5s %ld %llu %llu %llu", verb, &disk, &offset, &length, &seed) >= 4 &&
		   (!strcmp(verb, "write") || !strcmp(verb, "check") || !strcmp(verb, "zero") || !strcmp(verb, "trim"))) {
		obey_disk(fd, verb, disk, offset, length, seed);
	} else {
		answer(fd, "error dirty PAGES [PERIOD_MS] | status | write, check, zero, trim DISK OFFSET LENGTH [SEED]\n");
	}
}

/* Returns 0 when the connection is to be dropped. */
static int serve_control(int i)
{
	struct connection *c = &connections[i];
	ssize_t got = recv(polls[i].fd, c->buffer + c->end, BUFFER - c->end - 1, 0);
	char *newline;

	if (got <= 0)
		return got < 0 && errno == EAGAIN;
	c->end += got;
	c->buffer[c->end] = 0;
	while ((newline = memchr(c->buffer, '\n', c->end))) {
		size_t taken = newline + 1 - c->buffer;

		*newline = 0;
		if (newline > c->buffer && newline[-1] == '\r')
			newline[-1] = 0;
		obey(polls[i].fd, c->buffer);
		memmove(c->buffer, newline + 1, c->end - taken);
		c->end -= taken;
	}
	return c->end < BUFFER - 1;
}

static int serve_echo(int i)
{
	struct connection *c = &connections[i];
	ssize_t n;

	if (c->start == c->end) {
		n = recv(polls[i].fd, c->buffer, BUFFER, 0);
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		c->start = 0;
		c->end = n;
	}
	n = send(polls[i].fd, c->buffer + c->start, c->end - c->start, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN)
		return 0;
	if (n > 0)
		c->start += n;
	/* Read on only when the client has taken what it sent: the buffer is the bound. */
	polls[i].events = c->start == c->end ? POLLIN : POLLOUT;
	return 1;
}

/* Does the service on a local port take a connection and, if asked something, answer with something that begins so? */
static int answers(int port, const char *question, char first)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval limit = { .tv_sec = 1 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char reply[16];
	int ok;

	if (fd < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	ok = !connect(fd, (struct sockaddr *)&address, sizeof(address)) &&
	     send(fd, question, strlen(question), MSG_NOSIGNAL) > 0 && recv(fd, reply, sizeof(reply), 0) > 0 && reply[0] == first;
	close(fd);
	return ok;
}

static void wait_until_ready(void)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000000 };

	while (!answers(REDIS_PORT, "PING\r\n", '+') || !answers(HTTP_PORT, "GET / HTTP/1.0\r\n\r\n", 'H'))
		nanosleep(&pause, NULL);
	puts("HOLDFAST GUEST READY");
	fflush(stdout);
}

int main(void)
{
	/* The kernel reaps: process 1 inherits every orphan and has no use for any of them. */
	signal(SIGCHLD, SIG_IGN);
	dirtier.passes = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (dirtier.passes == MAP_FAILED)
		die("memory");
	polls[ECHO_LISTENER] = (struct pollfd){ .fd = listen_on(ECHO_PORT), .events = POLLIN };
	polls[CONTROL_LISTENER] = (struct pollfd){ .fd = listen_on(CONTROL_PORT), .events = POLLIN };
	wait_until_ready();
	for (;;) {
		if (poll(polls, used, -1) < 0 && errno != EINTR)
			die("poll");
		/* Backwards: a dropped connection is replaced by the last one, which has been served. */
		for (int i = used - 1; i >= FIRST_CLIENT; i--) {
			if (!polls[i].revents)
				continue;
			if (!(connections[i].control ? serve_control(i) : serve_echo(i)))
				drop(i);
		}
		for (int i = ECHO_LISTENER; i < FIRST_CLIENT; i++)
			if (polls[i].revents)
				take_connections(i);
	}
}
