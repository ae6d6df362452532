/* SPDX-License-Identifier: Apache-2.0
 *
 * mapscript.c - a program that maps files as its script says, and reports what it read.
 *
 * Owns one call a line and one line of answer, with no address in it, so that the answers of
 * two runs can be compared.  Must not know where its files lie: names are relative to
 * argv[1], those with "@" to argv[2], which is the same directory seen from behind.
 *
 * Numbers are sums, "p" is a page: 2p+100.  The script comes on standard input, one line at a
 * time, or as argv[3] with ";" between lines, for the children it starts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mapscript.h"

#define WORDS 12

extern char **environ;

struct mapping maps[NAMES];
int files[NAMES];
int output = 1;

static const char *top, *behind;
static bool scripted;
static char *script; /* what is left of argv[3] */

void say(const char *format, ...)
{
	char line[8192];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	if (write(output, line, (size_t)n) != n)
		_exit(9);
}

void result(long r)
{
	if (r < 0)
		say("%s", strerrorname_np(errno));
	else
		say("%ld", r);
}

void done(long r)
{
	result(r < 0 ? r : 0);
}

void say_bytes(const unsigned char *bytes, long n)
{
	char line[4096];
	size_t len = 0;

	line[0] = '\0';
	for (long i = 0, j; i < n && len < sizeof(line) - 32; i = j) {
		for (j = i; j < n && bytes[j] == bytes[i]; j++)
			;
		len += (size_t)sprintf(line + len, bytes[i] > 32 && bytes[i] < 127 ? "%c" : "\\%d",
				       bytes[i]);
		if (j - i > 1)
			len += (size_t)sprintf(line + len, "*%ld ", j - i);
	}
	say("[%s]", line);
}

long number(const char *s)
{
	long sum = 0;
	char *end;

	for (; s && *s; s = *end == '+' ? end + 1 : end) {
		long n = strtol(s, &end, 0);

		if (*end == 'p') {
			n *= PAGE;
			end++;
		}
		if (end == s || (*end && *end != '+'))
			exit(8);
		sum += n;
	}
	return sum;
}

int slot(const char *name)
{
	return name[0] >= 'A' && name[0] < 'A' + NAMES ? name[0] - 'A' : name[0] - 'a';
}

const char *path(const char *name)
{
	static _Thread_local char room[2][4096];
	static _Thread_local int turn;
	char *to = room[turn ^= 1];

	snprintf(to, sizeof(room[0]), "%s/%s", *name == '@' ? behind : top, name + (*name == '@'));
	return to;
}

static char *next_line(void)
{
	static char *line;
	static size_t room;
	ssize_t n;

	if (scripted)
		return strsep(&script, ";");
	/* unbuffered: a forked child goes on where its parent is */
	if (!line)
		line = malloc(room = 8192);
	for (n = 0; n < (ssize_t)room - 1 && read(0, line + n, 1) == 1 && line[n] != '\n'; n++)
		;
	line[n] = '\0';
	return n || line[0] ? line : NULL;
}

static void child_ended(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		exit(7);
	if (WIFSIGNALED(status))
		say("child: %s", sigabbrev_np(WTERMSIG(status)));
	else
		say("child: %d", WEXITSTATUS(status));
}

static void start_self(char how, char *lines)
{
	char self[] = "/proc/self/exe", *argv[] = { self, (char *)top, (char *)behind, lines, NULL };
	pid_t pid = 0;
	volatile int error = 0;

	if (how == 's')
		error = posix_spawn(&pid, self, NULL, NULL, argv, environ);
	else if (how == 'v')
		pid = vfork();
	if (!pid && how != 's') {
		execve(self, argv, environ);
		_exit(6);
	}
	if (error)
		exit(7);
	child_ended(pid);
}

static bool run(void);

static void *run_thread(void *unused)
{
	(void)unused;
	while (run())
		;
	return NULL;
}

/* "fork" and "thread" do what follows, up to "end", in a child. */
static bool run(void)
{
	char *line = next_line(), *words[WORDS] = { NULL };
	pthread_t thread;
	pid_t pid;
	int n = 0;

	if (!line)
		return false;
	if (!strncmp(line, "spawn ", 6) || !strncmp(line, "vfork ", 6) || !strncmp(line, "exec ", 5)) {
		char *lines = strdup(strchr(line, ' ') + 1);

		for (char *c = lines; *c; c++)
			*c = *c == ',' ? ';' : *c;
		start_self(*line, lines);
		free(lines);
		return true;
	}
	for (char *word; n < WORDS - 1 && (word = strsep(&line, " "));)
		if (*word)
			words[n++] = word;
	if (!n || *words[0] == '#')
		return true;
	if (!strcmp(words[0], "end"))
		return false;
	if (!strcmp(words[0], "die"))
		kill(getpid(), SIGKILL);
	if (!strcmp(words[0], "fork")) {
		pid = fork();
		if (!pid) {
			while (run())
				;
			_exit(0);
		}
		child_ended(pid);
		if (scripted) /* else the child has read them */
			while ((line = next_line()) && strcmp(line, "end"))
				;
	} else if (!strcmp(words[0], "thread")) {
		if (pthread_create(&thread, NULL, run_thread, NULL) || pthread_join(thread, NULL))
			exit(7);
		say("joined");
	} else if (!call_on_file(words) && !call_on_memory(words) && !call_on_system(words)) {
		say("%s: what is that?", words[0]);
		exit(8);
	}
	return true;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 8;
	top = argv[1];
	behind = argv[2];
	script = argc > 3 ? argv[3] : NULL;
	scripted = script;
	guard_accesses();
	while (run())
		;
	return 0;
}
