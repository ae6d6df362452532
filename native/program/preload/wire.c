/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.c - the connection of a process to the host.
 *
 * Owns the kept descriptor, and the lock of the conversation.  The program may have closed the
 * descriptor, or reused its number for another file, so it is checked before each use.  Only the
 * process that made the connection uses it.  Another process in the same memory (a child of
 * vfork(), or of clone(), which is not interposed) connects for each conversation.  It must use
 * neither the lock nor the kept descriptor, because the lock's holder may be a thread that the
 * child does not have.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

enum {
	HIGH = 1000, /* a number that programs rarely use for a descriptor */
	STDIO_MAX = 2,
};

enum {
	FREE,
	HELD,
	WANTED
}; /* futex(2): there are waiters only when WANTED */

static atomic_int lock;
static atomic_int owner; /* pid */
static struct client client = { .fd = -1 };
static dev_t client_dev;
static ino_t client_ino;

static atomic_bool mapped;
static atomic_bool unfollowed; /* a forked child is not served (no EVENT_FORK) */

/* Blocks all signals; sigprocmask() excludes those of libc (cancellation, setuid). */
uint64_t signals_block(void)
{
	uint64_t all = ~0ull, mask = 0;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, &mask, sizeof(mask));
	return mask;
}

void signals_restore(uint64_t mask)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof(mask));
}

static bool try_lock(void)
{
	int none = FREE;

	return atomic_compare_exchange_strong(&lock, &none, HELD);
}

static void take_lock(void)
{
	if (try_lock())
		return;
	while (atomic_exchange(&lock, WANTED) != FREE)
		syscall(SYS_futex, &lock, FUTEX_WAIT_PRIVATE, WANTED, NULL);
}

static void drop_lock(void)
{
	if (atomic_exchange(&lock, FREE) == WANTED)
		syscall(SYS_futex, &lock, FUTEX_WAKE_PRIVATE, 1);
}

static pid_t own_pid(void)
{
	return (pid_t)syscall(SYS_getpid);
}

static bool is_owner(void)
{
	return atomic_load(&owner) == own_pid();
}

void wire_own(void)
{
	atomic_store(&owner, own_pid());
}

static bool still_ours(void)
{
	struct stat st;

	return client.fd >= 0 && !syscall(SYS_fstat, client.fd, &st) && S_ISSOCK(st.st_mode) &&
	       st.st_dev == client_dev && st.st_ino == client_ino;
}

/* Move `fd` to a high number, which a program that reopens 0 to 2 is unlikely to use. */
static int move_high(int fd)
{
	int least, high = -1;

	for (least = HIGH; high < 0 && least > STDIO_MAX; least /= 4)
		high = (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, least);
	syscall(SYS_close, fd);
	return high;
}

static long call_here(struct caller *c, long number, const uint64_t a[6])
{
	long r = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);

	(void)c;
	return r == -1 ? -errno : r;
}

struct caller here = { .call = call_here };

/* -> 0, or the errno for the program's call. */
static int serve_new(struct client *c)
{
	uint32_t flags;
	int error = served_begin(c, settings()->socket, own_pid(), &here, &flags);

	if (error)
		return error;
	c->fd = move_high(c->fd);
	if (c->fd < 0)
		return EMFILE;
	if (!(flags & DF_SERVE_CHILDREN))
		atomic_store(&unfollowed, true);
	return 0;
}

static int reconnect(struct conversation *c)
{
	struct stat st;
	int r;

	c->fresh = true;
	r = serve_new(c->client);
	if (r || !c->owner)
		return r;
	if (syscall(SYS_fstat, client.fd, &st)) { /* closed by another thread */
		client.fd = -1;
		return ENODEV;
	}
	client_dev = st.st_dev;
	client_ino = st.st_ino;
	return 0;
}

int wire_begin(struct conversation *c)
{
	*c = (struct conversation){ .own.fd = -1, .mask = signals_block(), .owner = is_owner() };
	c->client = c->owner ? &client : &c->own;
	if (c->owner) {
		take_lock();
		if (still_ours())
			return 0;
		client.fd = -1; /* closed, or now another file */
	}
	return reconnect(c);
}

int wire_again(struct conversation *c)
{
	client_close(c->client);
	return c->fresh ? ENODEV : reconnect(c);
}

void wire_end(struct conversation *c)
{
	if (c->owner)
		drop_lock();
	else
		client_close(&c->own);
	signals_restore(c->mask);
}

void wire_sigbus(uint64_t address, pid_t tid, int code, const uint64_t *frames, size_t n)
{
	struct client own = { .fd = -1 };
	int device;

	if (is_owner() && try_lock()) {
		int r = still_ours() ? client_sigbus(&client, address, tid, code, frames, n) : -EBADF;

		drop_lock();
		if (!r)
			return;
	}
	if (client_attach(&own, settings()->socket, own_pid(), &device))
		return;
	if (device >= 0)
		syscall(SYS_close, device);
	client_sigbus(&own, address, tid, code, frames, n);
	client_close(&own);
}

bool wire_mapped(void)
{
	return atomic_load(&mapped);
}

void wire_set_mapped(void)
{
	atomic_store(&mapped, true);
}

bool wire_unfollowed(void)
{
	return atomic_load(&unfollowed);
}

bool wire_drop(void)
{
	if (!is_owner() || !still_ours())
		return false;
	client_close(&client);
	return true;
}

bool wire_hold(void)
{
	if (!is_owner())
		return false;
	take_lock();
	return true;
}

void wire_release(void)
{
	drop_lock();
}

void wire_forked(void)
{
	atomic_store(&lock, FREE);
	wire_own();
	if (still_ours()) /* otherwise the host would not see the end of the parent's connection */
		client_close(&client);
	client.fd = -1;
}
