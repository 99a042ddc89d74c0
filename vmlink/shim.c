// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Loaded into QEMU by LD_PRELOAD: makes a userfaultfd there and hands it to the service.
 *
 * A userfaultfd watches the memory of the process that created it, so it has to be made in QEMU, after exec
 * and before main. Everything else (registering, protecting, scanning) works from outside. The handshake of
 * features is done here too: a descriptor allows it only once.
 *
 * HOLDFAST_SHIM_FD is the number of a connected UNIX socket that takes the answer, one message: "HFUF", then
 * errno as a native int (0: the descriptor comes with it).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Spelt out, so that headers older than the running kernel do. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* enough for asynchronous write-protection, and needs no privilege */
#endif
#define FEATURE_WP_HUGETLBFS_SHMEM (1ull << 12)
#define FEATURE_WP_UNPOPULATED (1ull << 13)
#define FEATURE_WP_ASYNC (1ull << 15) /* Linux 6.7 */

struct answer {
	char magic[4];
	int error;
};

static int make_userfaultfd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
	};
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 && errno == EPERM)
		fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static void hand_over(int sock, int fd, int error)
{
	struct answer answer = { { 'H', 'F', 'U', 'F' }, error };
	struct iovec iov = { &answer, sizeof(answer) };
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control.room);
		struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	/* When nobody listens any more, nobody misses it. */
	(void)!sendmsg(sock, &msg, MSG_NOSIGNAL);
}

__attribute__((constructor)) static void holdfast_shim(void)
{
	const char *number = getenv("HOLDFAST_SHIM_FD");
	const char *preload = getenv("LD_PRELOAD");

	if (!number)
		return;

	int sock = atoi(number);
	int fd = make_userfaultfd();
	hand_over(sock, fd, fd < 0 ? errno : 0);
	if (fd >= 0)
		close(fd);
	close(sock);

	/* What QEMU runs must not do this again. We are first in the list; a preload of the user's stays. */
	const char *others = preload ? strchr(preload, ':') : NULL;
	if (others && others[1])
		setenv("LD_PRELOAD", others + 1, 1);
	else
		unsetenv("LD_PRELOAD");
	unsetenv("HOLDFAST_SHIM_FD");
}
