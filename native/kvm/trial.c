/* SPDX-License-Identifier: Apache-2.0
 *
 * trial.c - one guest over one file, up to the access that must fail.
 *
 * Owns the file, which is unlinked at once, so that nothing is left behind.  Every wait is bounded.
 * Must not judge the outcome of the access.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "abi/abi.h"
#include "base/clock.h"
#include "probe.h"

/* Limit for a guest that does not wait for a page.  An emulated CPU needs a fraction of a second. */
#define ANSWER_SECONDS 10

double trial_now(void)
{
	return (double)now_ns() / 1e9;
}

static bool refused(struct trial *trial, const char *what, int error)
{
	snprintf(trial->why, sizeof(trial->why), "%s: %s", what, strerror(-error));
	return false;
}

const char *trial_exit_name(const struct df_kvm_exit *exit)
{
	static const char *const names[] = {
		[DF_KVM_EXIT_DOORBELL] = "DOORBELL",
		[DF_KVM_EXIT_EFAULT] = "EFAULT",
		[DF_KVM_EXIT_MMIO] = "MMIO",
		[DF_KVM_EXIT_SIGBUS] = "SIGBUS",
		[DF_KVM_EXIT_STOPPED] = "STOPPED",
		[DF_KVM_EXIT_HALT] = "HALT",
		[DF_KVM_EXIT_SHUTDOWN] = "SHUTDOWN",
		[DF_KVM_EXIT_INTERNAL] = "INTERNAL",
		[DF_KVM_EXIT_FAIL_ENTRY] = "FAIL_ENTRY",
		[DF_KVM_EXIT_MEMORY] = "MEMORY_FAULT",
		[DF_KVM_EXIT_PORT] = "PORT",
		[DF_KVM_EXIT_OTHER] = "OTHER",
	};

	return exit->kind < sizeof(names) / sizeof(names[0]) && names[exit->kind] ? names[exit->kind]
										  : "OTHER";
}

bool trial_exits(struct trial *trial, double seconds)
{
	struct pollfd poll_for = { .fd = df_kvm_exits_fd(trial->machine), .events = POLLIN };
	double until = trial_now() + seconds;

	for (;;) {
		double left = until - trial_now();

		if (df_kvm_exits(trial->machine, &trial->exit, 1) == 1)
			return true;
		if (left <= 0)
			return false;
		poll(&poll_for, 1, (int)(left * 1000) + 1);
	}
}

bool trial_resume(struct trial *trial)
{
	int error = df_kvm_resume(trial->machine, 0);

	return error ? refused(trial, "resuming the vCPU", error) : true;
}

const struct df_kvm_mailbox *trial_mailbox(const struct trial *trial)
{
	return (const void *)((const char *)df_kvm_ram(trial->machine) + DF_KVM_MAILBOX);
}

static bool answered(struct trial *trial)
{
	if (!trial_exits(trial, ANSWER_SECONDS)) {
		snprintf(trial->why, sizeof(trial->why), "the guest does not answer within %d s",
			 ANSWER_SECONDS);
		return false;
	}
	if (trial->exit.kind == DF_KVM_EXIT_DOORBELL && trial->exit.value == DF_KVM_RING_READY)
		return true;
	snprintf(trial->why, sizeof(trial->why),
		 "the guest does not run: %s, exit_reason %u, errno %d",
		 trial_exit_name(&trial->exit), trial->exit.exit_reason, trial->exit.error);
	return false;
}

static bool run(struct trial *trial, const struct df_kvm_step *steps, uint32_t count)
{
	struct df_kvm_mailbox *mailbox = (void *)((char *)df_kvm_ram(trial->machine) + DF_KVM_MAILBOX);

	memcpy(mailbox->steps, steps, count * sizeof(*steps));
	memset(mailbox->results, 0, sizeof(mailbox->results));
	mailbox->count = count;
	mailbox->ran = 0;
	return trial_resume(trial);
}

static uint32_t flags_of(const struct probe_case *what)
{
	return (what->user ? DF_KVM_RING3 : 0) | (what->irqs ? DF_KVM_IRQS : 0) | DF_KVM_TABLE;
}

static bool warm(struct trial *trial)
{
	const struct df_kvm_step steps[] = {
		{ .op = DF_KVM_OP_APF,
		  .arg = trial->what->apf ? DF_KVM_APF_ENABLED | DF_KVM_APF_AS_INT : DF_KVM_APF_OFF },
		{ .op = DF_KVM_OP_STORE,
		  .flags = flags_of(trial->what),
		  .repeat = TRIAL_PAGES,
		  .stride = DF_PAGE_SIZE },
		{ .op = DF_KVM_OP_LOAD,
		  .flags = flags_of(trial->what),
		  .repeat = TRIAL_PAGES,
		  .stride = DF_PAGE_SIZE },
	};
	/* if there is no async_pf MSR, a write to it is a #GP */
	uint32_t skip = !trial->what->apf;
	const struct df_kvm_result *last = &trial_mailbox(trial)->results[2 - skip];

	if (!run(trial, steps + skip, 3 - skip) || !answered(trial))
		return false;
	if (last->outcome == DF_KVM_OK && last->done == TRIAL_PAGES)
		return true;
	snprintf(trial->why, sizeof(trial->why),
		 "the guest cannot read the file before it is truncated");
	return false;
}

static int open_file(void)
{
	const char *folder = getenv("TMPDIR");
	char name[4096];
	int fd;

	folder = folder && *folder ? folder : "/tmp";
	fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0)
		return fd;
	/* some file systems lack O_TMPFILE */
	if (snprintf(name, sizeof(name), "%s/daxfault-kvm-probe.XXXXXX", folder) >=
	    (int)sizeof(name)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = mkostemp(name, O_CLOEXEC);
	if (fd >= 0)
		unlink(name);
	return fd;
}

static bool open_machine(struct trial *trial, bool spin)
{
	const struct df_kvm_options options = { .vcpus = 1,
						.irqchip = trial->what->irqchip,
						.spin = spin };
	int error;

	trial->file = open_file();
	if (trial->file < 0 || ftruncate(trial->file, TRIAL_PAGES * DF_PAGE_SIZE))
		return refused(trial, "a file in $TMPDIR, or /tmp", -errno);
	error = df_window_file(trial->file, 0, DF_KVM_WINDOW_LEN, 1, &trial->hva);
	if (!error)
		error = df_kvm_new(&options, &trial->machine);
	if (!error)
		error = df_kvm_memslot(trial->machine, 1, DF_KVM_WINDOW, DF_KVM_WINDOW_LEN,
				       trial->hva);
	return error ? refused(trial, df_kvm_call(), error) : true;
}

bool trial_begin(struct trial *trial, const struct probe *probe, const struct probe_case *what)
{
	*trial = (struct trial){ .what = what, .file = -1 };
	if (!open_machine(trial, probe->host.spin) || !trial_resume(trial) || !answered(trial) ||
	    !warm(trial))
		return false;
	if (ftruncate(trial->file, TRIAL_LIVE))
		return refused(trial, "truncating the file", -errno);
	return true;
}

bool trial_touch(struct trial *trial)
{
	const struct df_kvm_step step = {
		.op = DF_KVM_OP_LOAD,
		.flags = flags_of(trial->what),
		.offset = TRIAL_OFFSET,
	};

	return run(trial, &step, 1);
}

void trial_end(struct trial *trial)
{
	if (trial->machine)
		df_kvm_free(trial->machine);
	if (trial->hva)
		df_window_unmap(trial->hva, DF_KVM_WINDOW_LEN);
	if (trial->file >= 0)
		close(trial->file);
}
