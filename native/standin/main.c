/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - daxfault-standin: a process that models a virtual machine.
 *
 * Owns the arguments, the order of startup and the exit status.  Must not know individual faults.
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
	"usage: daxfault-standin (--fd N | --socket PATH) [--window BYTES] [--abi NAME]\n"
	"                        [--no-errors] [--no-async] [--as-posted NAME[,NAME...]]\n"
	"\n"
	"Models a virtual machine whose memory a daxfault host serves: vCPUs are\n"
	"threads, and a window of address space is in place of a virtiofs DAX window.\n"
	"Reads commands from standard input, one per line; writes answers to standard\n"
	"output, one JSON object per line.\n"
	"\n"
	"  --fd N          connected SOCK_SEQPACKET socket of the host\n"
	"  --socket PATH   listening SOCK_SEQPACKET socket of the host\n"
	"  --window BYTES  size of the window, a multiple of 2M (default 1G)\n"
	"  --abi NAME      mainline, rfc-v1, june-2020, gone, retry or report (default):\n"
	"                  the kvm_para.h that the guest kernel was built with\n"
	"  --no-errors     do not request reports of page errors\n"
	"  --no-async      do not enable asynchronous page faults\n"
	"  --as-posted NAME[,NAME...]\n"
	"                  keep defects of RFC v1: success-is-error, gla-or, foll-write,\n"
	"                  no-entry-loops, no-gva-flag, wake-all-uninit, stale-gva\n"
	"  --help          this text\n"
	"\n"
	"Commands. Numbers are decimal or 0x..., with K, M or G; # begins a comment.\n"
	"OFF is an offset in the window.\n"
	"  open NAME PATH ro|rw              open a file and show it to the host\n"
	"  map NAME FOFFSET LEN MOFFSET r|w  map part of it at MOFFSET of the window\n"
	"  unmap MOFFSET LEN\n"
	"  close NAME\n"
	"  vcpu N[.T] ACCESS                 queue an access for task T (0..95, else 0) of\n"
	"                                    vCPU N (0..62)\n"
	"  kill N T                          SIGKILL for a task\n"
	"  async on|off                      write MSR_KVM_ASYNC_PF_EN of every vCPU\n"
	"  trace on|off|dump                 the events of each vCPU\n"
	"  wait [N]                          until no access is queued (on vCPU N)\n"
	"  stat                              counters of every vCPU\n"
	"  quit                              at once; end of input waits first\n"
	"\n"
	"Accesses, after `irqoff` with interrupts disabled; in user mode:\n"
	"  touch OFF                         load a byte\n"
	"  read OFF LEN                      up to 4096 bytes, value in hex\n"
	"  sum OFF LEN                       value is their FNV-1a, 64 bits\n"
	"  write OFF HEX                     up to 4096 bytes\n"
	"  fill OFF LEN BYTE\n"
	"  scan OFF LEN STRIDE               a load every STRIDE, up to the first fault\n"
	"  scan_all OFF LEN STRIDE           the same, but continue after a fault\n"
	"  laps OFF LEN STRIDE SEED          timed loads, shuffled unless SEED is 0\n"
	"  work MS                           compute for MS ms, value is the units done\n"
	"  fork OFF                          a forked child loads a byte\n"
	"  dontneed OFF LEN                  madvise(MADV_DONTNEED)\n"
	"  remap OFF LEN NEWOFF              mremap() inside the window\n"
	"  sigbus handle|default|ignore|block\n"
	"in guest kernel mode, value is the FNV-1a of the bytes copied:\n"
	"  kcopy OFF LEN                     copy out, the exception table has an entry\n"
	"  kread OFF LEN                     the same of up to 4096 bytes, value in hex\n"
	"  kcopy_bare OFF LEN                copy out, it has none: a fault is a panic\n"
	"  kstore OFF LEN                    copy in, each byte the low byte of its OFF\n"
	"and in a system call of this kernel:\n"
	"  sys_write OFF LEN                 write(2) from the window\n"
	"  sys_read OFF LEN                  read(2) of zeros into it\n"
	"\n"
	"Exit status: 0 done, 1 a guest kernel panicked, 2 usage, script or system error,\n"
	"3 the host refused or ended.\n";

struct options {
	int fd;
	const char *path;
	uint64_t window;
	enum df_abi abi;
	bool errors, async;
	uint32_t posted;
};

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int status, const char *format, ...)
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

static const char *const ABI_NAMES[DF_ABI_COUNT] = {
	[DF_ABI_MAINLINE] = "mainline",	  [DF_ABI_RFC_V1] = "rfc-v1",
	[DF_ABI_JUNE_2020] = "june-2020", [DF_ABI_GONE] = "gone",
	[DF_ABI_RETRY] = "retry",	  [DF_ABI_REPORT] = "report",
};

static const struct {
	const char *name;
	uint32_t bit;
} POSTED_NAMES[] = {
	{ "success-is-error", DF_POSTED_SUCCESS_IS_ERROR },
	{ "gla-or", DF_POSTED_GLA_OR },
	{ "foll-write", DF_POSTED_FOLL_WRITE },
	{ "no-entry-loops", DF_POSTED_NO_ENTRY_LOOPS },
	{ "no-gva-flag", DF_POSTED_NO_GVA_FLAG },
	{ "wake-all-uninit", DF_POSTED_WAKE_ALL_UNINIT },
	{ "stale-gva", DF_POSTED_STALE_GVA },
};

static enum df_abi parse_abi(const char *name)
{
	unsigned int i;

	for (i = 0; i < DF_ABI_COUNT; i++) {
		if (strcmp(ABI_NAMES[i], name) == 0)
			return (enum df_abi)i;
	}
	fail(EXIT_USAGE, "--abi %s: no such ABI, see --help", name);
}

static uint32_t parse_posted(char *names)
{
	char *rest = NULL, *name;
	uint32_t posted = 0;
	size_t i;

	for (name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
		for (i = 0; i < sizeof(POSTED_NAMES) / sizeof(POSTED_NAMES[0]); i++) {
			if (strcmp(POSTED_NAMES[i].name, name) == 0)
				break;
		}
		if (i == sizeof(POSTED_NAMES) / sizeof(POSTED_NAMES[0]))
			fail(EXIT_USAGE, "--as-posted %s: no such defect, see --help", name);
		posted |= POSTED_NAMES[i].bit;
	}
	return posted;
}

/* The CPUID bits that a guest of this ABI requests. */
static uint32_t wanted(const struct options *o)
{
	uint32_t error = DF_CPUID_ERROR;

	if (o->abi == DF_ABI_MAINLINE)
		error = 0;
	else if (o->abi == DF_ABI_RFC_V1)
		error = DF_CPUID_ERROR_RFC_V1;
	else if (o->abi == DF_ABI_JUNE_2020)
		error = DF_CPUID_ERROR_JUNE_2020;
	return DF_CPUID_ASYNC_PF | (o->abi == DF_ABI_RFC_V1 ? 0 : DF_CPUID_ASYNC_PF_INT) |
	       (o->errors ? error : 0);
}

static void parse_options(int argc, char **argv, struct options *o)
{
	static const struct option options[] = {
		{ "fd", required_argument, NULL, 'f' },
		{ "socket", required_argument, NULL, 's' },
		{ "window", required_argument, NULL, 'w' },
		{ "abi", required_argument, NULL, 'a' },
		{ "no-errors", no_argument, NULL, 'n' },
		{ "no-async", no_argument, NULL, 'y' },
		{ "as-posted", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint64_t number;
	int c;

	*o = (struct options){
		.fd = -1,
		.window = DEFAULT_WINDOW,
		.abi = DF_ABI_REPORT,
		.errors = true,
		.async = true,
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
			o->errors = false;
			break;
		case 'y':
			o->async = false;
			break;
		case 'a':
			o->abi = parse_abi(optarg);
			break;
		case 'p':
			o->posted = parse_posted(optarg);
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

/* Send the descriptors and addresses of this guest to the host. */
static void hello(const struct options *o, int event_area)
{
	struct df_hello msg = {
		.h.type = DF_HELLO,
		.version = DF_WIRE_VERSION,
		.pid = getpid(),
		.window = window_base,
		.window_len = window_len,
		.abi = o->abi,
		.cpuid = wanted(o),
	};
	int fds[] = { window_uffd, event_area };
	int error = wire_call(&msg.h, sizeof(msg), fds, 2, &guest.doorbell);

	if (error < 0)
		fail(EXIT_HOST, "the host closed the connection before its hello");
	if (error > 0)
		fail(EXIT_HOST, "the host refused: %s", strerror(error));
	if (msg.version != DF_WIRE_VERSION)
		fail(EXIT_HOST, "the host speaks version %u, not %d", msg.version, DF_WIRE_VERSION);
	if (msg.cpuid & ~wanted(o))
		fail(EXIT_HOST, "the host granted CPUID bits 0x%x that were not requested",
		     msg.cpuid & ~wanted(o));
	guest.abi = o->abi;
	guest.cpuid = msg.cpuid;
	guest.posted = o->posted;
	guest.async = o->async;
}

static void ready(void)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, "ready");

	json_int(j, "pid", getpid());
	json_address(j, "window", window_base);
	json_uint(j, "window_len", window_len);
	json_uint(j, "cpuid", guest.cpuid);
	json_bool(j, "fork", window_sees_fork());
	json_bool(j, "poison", window_has_poison());
	answer_end(&answer);
}

/* Runs in the wire's thread, which answers this guest's faults from now on. */
static void host_lost(const char *why)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, "host_lost");

	json_text(j, "message", why);
	answer_end(&answer);
	fork_abandon();
	vcpu_host_lost();
	takeover();
}

int main(int argc, char **argv)
{
	struct options o;
	int event_area, error;
	bool good;

	parse_options(argc, argv, &o);
	if (o.path) {
		o.fd = wire_connect(o.path);
		if (o.fd < 0)
			fail(EXIT_HOST, "%s: %s", o.path, strerror(-o.fd));
	}
	error = window_open(o.window);
	if (error)
		fail(EXIT_USAGE, "no window served by userfaultfd: %s", strerror(-error));
	event_area = async_pf_area();
	if (event_area < 0)
		fail(EXIT_USAGE, "no event area: %s", strerror(errno));
	if (exception_install() < 0)
		fail(EXIT_USAGE, "no exception entry: %s", strerror(errno));

	wire_start(o.fd, host_lost);
	hello(&o, event_area);
	close(event_area);
	ready();

	good = console_run();
	if (wire_lost())
		_exit(EXIT_HOST);
	if (vcpu_panicked())
		_exit(EXIT_PANIC);
	_exit(good ? EXIT_DONE : EXIT_USAGE);
}
