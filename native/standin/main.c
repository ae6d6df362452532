/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - daxfault-standin: a process that plays a virtual machine.
 *
 * Owns the arguments, the order of the start and the exit code.  Must not know
 * of single faults.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "standin.h"

static const uint64_t DEFAULT_WINDOW = UINT64_C(1) << 30;

static const char HELP[] =
"usage: daxfault-standin (--fd N | --socket PATH) [--window BYTES] [--no-errors]\n"
"\n"
"Plays a virtual machine whose memory is served by a daxfault host: vCPUs are\n"
"threads, and a window of address space takes the place of a virtiofs DAX\n"
"window. Commands are read from standard input, one a line; answers are written\n"
"to standard output, one JSON object a line.\n"
"\n"
"  --fd N          connected SOCK_SEQPACKET socket of the host\n"
"  --socket PATH   listening SOCK_SEQPACKET socket of the host\n"
"  --window BYTES  size of the window, a multiple of 2M (default 1G)\n"
"  --no-errors     do not ask for page errors in the event area\n"
"  --help          this text\n"
"\n"
"Commands. Numbers are decimal or 0x..., with K, M or G; # begins a comment.\n"
"OFF is an offset in the window.\n"
"  open NAME PATH ro|rw              open a file and show it to the host\n"
"  map NAME FOFFSET LEN MOFFSET r|w  map part of it at MOFFSET of the window\n"
"  unmap MOFFSET LEN\n"
"  close NAME\n"
"  vcpu N ACCESS                     queue an access on vCPU N (0..62)\n"
"  wait [N]                          until nothing is queued (on vCPU N)\n"
"  stat                              counters of every vCPU\n"
"  quit                              at once; end of input waits first\n"
"\n"
"Accesses in user mode:\n"
"  touch OFF                         load a byte\n"
"  read OFF LEN                      up to 4096 bytes, value in hex\n"
"  sum OFF LEN                       value is their FNV-1a, 64 bits\n"
"  write OFF HEX                     up to 4096 bytes\n"
"  fill OFF LEN BYTE\n"
"  scan OFF LEN STRIDE               a load every STRIDE, up to the first fault\n"
"  scan_all OFF LEN STRIDE           the same, and on after each fault\n"
"  fork OFF                          a forked child loads a byte\n"
"  dontneed OFF LEN                  madvise(MADV_DONTNEED)\n"
"  remap OFF LEN NEWOFF              mremap() inside the window\n"
"  sigbus handle|default|ignore|block\n"
"in guest kernel mode, value is the FNV-1a of the bytes copied:\n"
"  kcopy OFF LEN                     copy out, the exception table has an entry\n"
"  kcopy_bare OFF LEN                copy out, it has none: a fault is a panic\n"
"  kstore OFF LEN                    copy in, each byte the low byte of its OFF\n"
"and in a system call of this kernel:\n"
"  sys_write OFF LEN                 write(2) from the window\n"
"  sys_read OFF LEN                  read(2) of zeros into it\n"
"\n"
"Exit status: 0 all done, 1 a guest kernel panicked, 2 usage, script or system\n"
"error, 3 the host refused or went away.\n";

struct options {
	int fd;
	const char *path;
	uint64_t window;
	uint32_t abi;
	uint32_t cpuid;
};

__attribute__((noreturn, format(printf, 2, 3)))
static void fail(int status, const char *format, ...)
{
	va_list ap;

	fputs("daxfault-standin: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	/* not exit(): the reader may run, and takeover() never ends */
	_exit(status);
}

static void need_socket(int fd)
{
	socklen_t len = sizeof(int);
	int type;

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		fail(EXIT_USAGE, "--fd %d: %s", fd, strerror(errno));
	if (type != SOCK_SEQPACKET)
		fail(EXIT_USAGE, "--fd %d: not a SOCK_SEQPACKET socket", fd);
}

static void parse_options(int argc, char **argv, struct options *o)
{
	static const struct option options[] = {
		{ "fd", required_argument, NULL, 'f' },
		{ "socket", required_argument, NULL, 's' },
		{ "window", required_argument, NULL, 'w' },
		{ "no-errors", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint64_t number;
	int c;

	*o = (struct options){
		.fd = -1,
		.window = DEFAULT_WINDOW,
		.abi = DF_ABI_REPORT,
		.cpuid = DF_CPUID_ASYNC_PF | DF_CPUID_ASYNC_PF_INT | DF_CPUID_ERROR,
	};
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'f':
			if (!parse_number(optarg, &number) || number > INT32_MAX)
				fail(EXIT_USAGE, "--fd %s: not a descriptor", optarg);
			o->fd = (int)number;
			break;
		case 's':
			o->path = optarg;
			break;
		case 'w':
			if (!parse_number(optarg, &o->window) || o->window == 0 ||
			    o->window % DF_RANGE_SIZE)
				fail(EXIT_USAGE, "--window %s: not a multiple of 2M", optarg);
			break;
		case 'n':
			o->cpuid &= ~(uint32_t)DF_CPUID_ERROR;
			break;
		case 'h':
			fputs(HELP, stdout);
			exit(EXIT_DONE);
		default:
			fail(EXIT_USAGE, "see --help");
		}
	}
	if (optind != argc)
		fail(EXIT_USAGE, "%s: no arguments are taken, see --help", argv[optind]);
	if ((o->fd >= 0) == (o->path != NULL))
		fail(EXIT_USAGE, "one of --fd and --socket is needed, see --help");
	if (o->fd >= 0)
		need_socket(o->fd);
}

static int doorbell = -1;

/* Hands the host what it needs to serve this guest; returns what it granted. */
static uint32_t hello(const struct options *o, int event_area)
{
	struct df_hello msg = {
		.h.type = DF_HELLO,
		.version = DF_WIRE_VERSION,
		.pid = getpid(),
		.window = window_base,
		.window_len = window_len,
		.abi = o->abi,
		.cpuid = o->cpuid,
	};
	int fds[] = { window_uffd, event_area };
	int error = wire_call(&msg.h, sizeof(msg), fds, 2, &doorbell);

	if (error < 0)
		fail(EXIT_HOST, "the host went away before it said hello");
	if (error > 0)
		fail(EXIT_HOST, "the host refused: %s", strerror(error));
	if (msg.version != DF_WIRE_VERSION)
		fail(EXIT_HOST, "the host speaks version %u, not %d", msg.version,
		     DF_WIRE_VERSION);
	if (msg.cpuid & ~o->cpuid)
		fail(EXIT_HOST, "the host granted CPUID bits 0x%x that were not asked for",
		     msg.cpuid & ~o->cpuid);
	return msg.cpuid;
}

static void ready(uint32_t granted)
{
	struct json j;

	json_begin(&j, "ready");
	json_int(&j, "pid", getpid());
	json_address(&j, "window", window_base);
	json_uint(&j, "window_len", window_len);
	json_uint(&j, "cpuid", granted);
	json_bool(&j, "fork", window_sees_fork());
	json_bool(&j, "poison", window_has_poison());
	json_emit(&j);
}

int main(int argc, char **argv)
{
	struct options o;
	uint32_t granted;
	int event_area;
	bool good;

	parse_options(argc, argv, &o);
	if (o.path) {
		o.fd = wire_connect(o.path);
		if (o.fd < 0)
			fail(EXIT_HOST, "%s: %s", o.path, strerror(errno));
	}
	if (window_open(o.window) < 0)
		fail(EXIT_USAGE, "no window served by userfaultfd: %s", strerror(errno));
	event_area = vcpu_event_area();
	if (event_area < 0)
		fail(EXIT_USAGE, "no event area: %s", strerror(errno));
	if (exception_install() < 0)
		fail(EXIT_USAGE, "no exception entry: %s", strerror(errno));

	wire_start(o.fd);
	granted = hello(&o, event_area);
	close(event_area);
	vcpu_enable(granted & DF_CPUID_ERROR ? DF_MSR_SEND_ERROR : 0);
	ready(granted);

	good = console_run();
	if (wire_lost())
		_exit(EXIT_HOST);
	if (vcpu_panicked())
		_exit(EXIT_PANIC);
	_exit(good ? EXIT_DONE : EXIT_USAGE);
}
