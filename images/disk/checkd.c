// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Lets a test look into the guest: port 10, a process for each connection. One line in, NAME [ARGUMENT ...];
 * what /usr/lib/holdfast/checks/NAME prints comes back, then the line "exit STATUS". Only what lies there can
 * be run, and no shell sees the arguments: letters, digits and =._,:/-
 *
 * `freeze` is built in: the root file system holds still, everything written is on the disk, and "frozen" is
 * said. A second line or the end of the connection thaws it, or else one minute, which is a failure.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PORT = 10, LINE = 1024, MAX_WORDS = 32, MAX_CLIENTS = 8, FROZEN_MS = 60 * 1000, PATIENCE_S = 60, TOO_LONG = 124 };

static void die(const char *what)
{
	fprintf(stderr, "checkd: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* Reads up to the first newline; returns 0 when there is none within PATIENCE_S or LINE bytes. */
static int read_line(int fd, char *line)
{
	size_t end = 0;

	while (end < LINE - 1) {
		if (recv(fd, line + end, 1, 0) <= 0)
			return 0;
		if (line[end] == '\n') {
			line[end] = 0;
			return 1;
		}
		end++;
	}
	return 0;
}

static int fit(const char *word)
{
	for (const char *at = word; *at; at++)
		if (!isalnum((unsigned char)*at) && !strchr("=._,:/-", *at))
			return 0;
	return 1;
}

static int freeze(int client)
{
	struct pollfd gone = { .fd = client, .events = POLLIN };
	int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int asked;

	if (root < 0 || ioctl(root, FIFREEZE, 0))
		return 1;
	asked = dprintf(client, "frozen\n") > 0 && poll(&gone, 1, FROZEN_MS) > 0;
	if (ioctl(root, FITHAW, 0))
		return 1;
	return asked ? 0 : TOO_LONG;
}

static int run(int client, char **words)
{
	char path[128];
	pid_t pid;
	int status;

	snprintf(path, sizeof(path), "/usr/lib/holdfast/checks/%s", words[0]);
	if (strpbrk(words[0], "./") || access(path, X_OK)) {
		dprintf(client, "there is no check %s\n", words[0]);
		return 127;
	}
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		dup2(client, STDOUT_FILENO);
		dup2(client, STDERR_FILENO);
		execv(path, words);
		_exit(126);
	}
	if (waitpid(pid, &status, 0) != pid)
		return 125;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int serve(int client)
{
	const struct timeval limit = { .tv_sec = PATIENCE_S };
	char line[LINE], *words[MAX_WORDS + 1] = { NULL }, *rest;
	int count = 0;

	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (!read_line(client, line))
		return 64;
	for (char *word = strtok_r(line, " \r", &rest); word; word = strtok_r(NULL, " \r", &rest)) {
		if (count == MAX_WORDS || !fit(word)) {
			dprintf(client, "at most %d words of letters, digits and =._,:/-\n", MAX_WORDS);
			return 64;
		}
		words[count++] = word;
	}
	if (!count)
		return 64;
	return strcmp(words[0], "freeze") ? run(client, words) : freeze(client);
}

int main(void)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(PORT) };
	int on = 1, clients = 0, listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    bind(listener, (struct sockaddr *)&any, sizeof(any)) || listen(listener, MAX_CLIENTS))
		die("listen");
	for (;;) {
		int client;

		while (clients && waitpid(-1, NULL, clients < MAX_CLIENTS ? WNOHANG : 0) > 0)
			clients--;
		client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (client < 0)
			continue;
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		if (fork() == 0) {
			close(listener);
			dprintf(client, "exit %d\n", serve(client));
			_exit(0);
		}
		clients++;
		close(client);
	}
}
