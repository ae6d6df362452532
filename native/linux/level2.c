/* SPDX-License-Identifier: Apache-2.0
 *
 * level2.c - daxfault-level2: init, the only program of a Linux guest.
 *
 * Maps the window, BAR 2 of QEMU's ivshmem (Documentation/PCI/sysfs-pci.rst), and has a child load
 * a byte of it again and again.  Twice a second it prints the child's progress on the second serial
 * port, which the kernel does not use, as a JSON object per line.  Must not know why a load does
 * not complete.
 *
 * 	{"gva": of the byte, "touches": loads done, "value": of the last,
 * 	 "state": of the child, as in /proc/PID/stat,
 * 	 "told": interrupts of the hypervisor, -1 when async page faults are off}
 * 	{"sigbus": si_code, "gva": si_addr}
 * 	{"ended": wait status}
 * 	{"error": text}
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

#define DEVICES "/sys/bus/pci/devices"
#define IVSHMEM "0x1110" /* QEMU, docs/specs/ivshmem-spec: vendor 1af4, device 1110 */
#define PAGE 4096
#define WITHIN_PAGE 0x123
#define TOUCH_NS 50000000
#define TELL_NS 500000000

struct progress {
	volatile uint64_t touches, value;
};

static void nap(long nanoseconds)
{
	nanosleep(&(struct timespec){ .tv_nsec = nanoseconds }, NULL);
}

/* When init exits, the kernel panics, and the host notices that. */
static void die(const char *what)
{
	printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
	exit(1);
}

static void read_text(const char *path, char *to, size_t room)
{
	int fd CLEANUP_CLOSE = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t all = 0, got = 0;

	while (fd >= 0 && (size_t)all + 1 < room &&
	       (got = read(fd, to + all, room - 1 - (size_t)all)) > 0)
		all += got;
	to[all] = 0;
}

static uint8_t *map_bar(const char *device, size_t *size)
{
	char path[512];
	struct stat bar;
	void *at;
	int fd;

	/* turn memory decoding on, as a driver would */
	snprintf(path, sizeof(path), DEVICES "/%s/enable", device);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		die(path);
	close(fd);
	snprintf(path, sizeof(path), DEVICES "/%s/resource2", device);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &bar))
		die(path);
	*size = (size_t)bar.st_size;
	at = mmap(NULL, *size, PROT_READ, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		die(path);
	close(fd);
	return at;
}

static uint8_t *map_window(size_t *size)
{
	DIR *devices = opendir(DEVICES);
	struct dirent *entry;
	uint8_t *at = NULL;

	while (devices && !at && (entry = readdir(devices))) {
		char path[512], text[16];

		snprintf(path, sizeof(path), DEVICES "/%s/device", entry->d_name);
		read_text(path, text, sizeof(text));
		if (!strncmp(text, IVSHMEM, strlen(IVSHMEM)))
			at = map_bar(entry->d_name, size);
	}
	if (!at) {
		errno = ENODEV;
		die("ivshmem");
	}
	closedir(devices);
	return at;
}

static void on_sigbus(int signal, siginfo_t *what, void *context)
{
	char line[96];
	int len = snprintf(line, sizeof(line), "{\"sigbus\": %d, \"gva\": %" PRIuPTR "}\n",
			   what->si_code, (uintptr_t)what->si_addr);

	(void)signal;
	(void)context;
	(void)!write(fileno(stdout), line, (size_t)len);
	_exit(1);
}

static void touch(struct progress *progress, const volatile uint8_t *at)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, NULL);
	for (;;) {
		progress->value = *at;
		progress->touches++;
		nap(TOUCH_NS);
	}
}

static char state(pid_t child)
{
	char path[64], text[512], *end;

	snprintf(path, sizeof(path), "/proc/%d/stat", child);
	read_text(path, text, sizeof(text));
	end = strrchr(text, ')');
	return end && end[1] == ' ' ? end[2] : '?';
}

/* On KVM only "page ready" is this interrupt (arch/x86/kernel/kvm.c, sysvec_kvm_asyncpf_interrupt).
 * /proc/interrupts has its line after the first one. */
static long long interrupts(void)
{
	static char text[1 << 16];
	char *line;

	read_text("/proc/interrupts", text, sizeof(text));
	line = strstr(text, "HYP:");
	return line ? strtoll(line + 4, NULL, 10) : -1;
}

static void watch(pid_t child, const struct progress *progress, const uint8_t *at)
{
	int status;

	while (waitpid(child, &status, WNOHANG) != child) {
		printf("{\"gva\": %" PRIuPTR ", \"touches\": %" PRIu64 ", \"value\": %" PRIu64
		       ", \"state\": \"%c\", \"told\": %lld}\n",
		       (uintptr_t)at, progress->touches, progress->value, state(child), interrupts());
		nap(TELL_NS);
	}
	printf("{\"ended\": %d}\n", status);
}

int main(void)
{
	struct progress *progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t *window;
	size_t size = 0;
	pid_t child;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL) || mount("proc", "/proc", "proc", 0, NULL) ||
	    mount("sysfs", "/sys", "sysfs", 0, NULL))
		die("mount");
	if (!freopen("/dev/ttyS1", "w", stdout))
		die("/dev/ttyS1");
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (progress == MAP_FAILED)
		die("mmap");
	window = map_window(&size);
	window += size - PAGE + WITHIN_PAGE;
	child = fork();
	if (child < 0)
		die("fork");
	if (!child)
		touch(progress, window);
	watch(child, progress, window);
	for (;;)
		pause(); /* if init exits, the kernel panics */
}
