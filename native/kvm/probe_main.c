/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_main.c - daxfault-kvm-probe: tries how the running kernel's KVM handles an access to a
 * removed page, and prints the findings as JSON.  Static, so that it also runs in an initramfs.
 *
 * Exit status: 0 done, 2 invalid arguments, 3 KVM cannot be used.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

/* Longer than the limit of every wait: a vCPU cannot be stopped. */
#define LIMIT_SECONDS 120

static void out_of_time(int signal)
{
	static const char text[] = "daxfault-kvm-probe: a vCPU cannot be stopped; no answer\n";

	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(3);
}

static int usage(void)
{
	fputs("usage: daxfault-kvm-probe [--seconds S]\n"
	      "S: how long a loop is watched, 0.05 to 10; default 0.25\n",
	      stderr);
	return 2;
}

static bool parse(int argc, char **argv, double *watch)
{
	char *end;

	if (argc == 1)
		return true;
	if (argc != 3 || strcmp(argv[1], "--seconds"))
		return false;
	errno = 0;
	*watch = strtod(argv[2], &end);
	return !errno && end != argv[2] && !*end && *watch >= 0.05 && *watch <= 10;
}

int main(int argc, char **argv)
{
	struct probe probe = { .watch = 0.25, .loop = -1, .ended_by = -1, .injected = -1 };
	double began = trial_now();

	if (!parse(argc, argv, &probe.watch))
		return usage();
	signal(SIGALRM, out_of_time);
	alarm(LIMIT_SECONDS);
	probe_host(&probe);
	if (!probe.unusable[0])
		probe_faults(&probe);
	if (!probe.unusable[0])
		probe_answers(&probe);
	probe.seconds = trial_now() - began;
	probe_report(&probe, stdout);
	if (fflush(stdout)) {
		fprintf(stderr, "daxfault-kvm-probe: standard output: %s\n", strerror(errno));
		return 1;
	}
	return probe.unusable[0] ? 3 : 0;
}
