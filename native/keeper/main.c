/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - daxfault-keeper: outlives a host.  Its standard input is the host's socket.
 *
 *     daxfault-keeper [-m MOUNT] [-p FD] [-c CONNECTION] [PATH...]
 *
 *   -m   where the host's mount is, -p an O_PATH descriptor of the directory below it, -c the number
 *        of its FUSE connection.  It is removed when the host has died.  So are the PATHs.
 *
 * Two processes.  The child holds the host's page caches and userfaultfds, and turns the guests'
 * mappings into SIGBUS.  The parent keeps the privileges for removing the mount, and no
 * descriptors.
 *
 * Exit: 0 the host has ended, 1 the child was killed, 2 standard input is not a host's socket.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

static struct leftovers arguments(int argc, char **argv)
{
	struct leftovers left = { .point = -1 };
	int option;

	while ((option = getopt(argc, argv, "m:p:c:")) != -1)
		switch (option) {
		case 'm':
			left.mount = optarg;
			break;
		case 'p':
			left.point = atoi(optarg);
			break;
		case 'c':
			left.connection = optarg;
			break;
		default:
			exit(2);
		}
	left.paths = argv + optind;
	left.npaths = argc - optind;
	return left;
}

static bool is_socket(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_SEQPACKET;
}

/* A signal from the terminal or to the process group must not end this before the host. */
static void ignore_signals(void)
{
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
	struct leftovers left = arguments(argc, argv);
	int died[2], status;
	pid_t child;
	char byte;

	if (!is_socket(STDIN_FILENO)) {
		fputs("daxfault-keeper: standard input is not a socket; it is started by a host\n",
		      stderr);
		return 2;
	}
	ignore_signals();
	if (pipe2(died, O_CLOEXEC) || (child = fork()) < 0) {
		perror("daxfault-keeper");
		return 1;
	}
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* the host replaces both */
		if (left.point >= 0)
			close(left.point);
		close(died[0]);
		kept_run(STDIN_FILENO, died[1]);
		_exit(0);
	}
	/* the host's socket must not stay open here: its end shows the host whether the child lives */
	close(STDIN_FILENO);
	close(died[1]);
	if (read(died[0], &byte, 1) == 1)
		cleanup(&left);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return !WIFEXITED(status) || WEXITSTATUS(status);
}
