/* SPDX-License-Identifier: Apache-2.0
 *
 * console.c - reads commands, one per line.
 *
 * Owns stdin and the table of commands.  A line is checked completely before it has an effect.  A
 * line that does not parse, or that the host refuses, causes an "error" event and changes nothing.
 * Must not touch the window's memory: this thread has no exception handlers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

enum {
	WORDS_MAX = 8,
};

struct command {
	const char *name;
	int words;				 /* including the command; -1: any number */
	const char *(*run)(char **words, int n); /* NULL, or the error */
};

static unsigned long line_number;
static bool quitting;

static const char *run_vcpu(char **words, int n)
{
	struct access *a;
	const char *wrong;
	unsigned int task;
	int error;
	int id;

	if (n < 3)
		return "wrong number of arguments";
	if (!parse_vcpu(words[1], &id, &task))
		return "no such vCPU or task";
	a = calloc(1, sizeof(*a));
	if (!a)
		abort();
	wrong = parse_access(words + 2, n - 2, a);
	if (!wrong) {
		error = vcpu_queue(id, task, a);
		if (!error)
			return NULL;
		wrong = strerror(error);
	}
	access_free(a);
	return wrong;
}

static const char *run_kill(char **words, int n)
{
	uint64_t id, task;

	(void)n;
	if (!parse_number(words[1], &id) || id >= VCPU_COUNT)
		return "no such vCPU";
	if (!parse_number(words[2], &task) || task >= TASK_COUNT)
		return "no such task";
	return vcpu_kill((int)id, (unsigned int)task) ? "no such task" : NULL;
}

static const char *run_async(char **words, int n)
{
	(void)n;
	if (strcmp(words[1], "on") && strcmp(words[1], "off"))
		return "async is on or off";
	vcpu_async(words[1][1] == 'n');
	return NULL;
}

static const char *run_trace(char **words, int n)
{
	(void)n;
	if (strcmp(words[1], "dump") == 0)
		trace_dump();
	else if (strcmp(words[1], "on") == 0 || strcmp(words[1], "off") == 0)
		trace_set(words[1][1] == 'n');
	else
		return "trace is on, off or dump";
	return NULL;
}

static const char *run_wait(char **words, int n)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, "idle");
	uint64_t id;

	if (n > 2)
		return "wrong number of arguments";
	if (n == 2) {
		if (!parse_number(words[1], &id) || id >= VCPU_COUNT)
			return "no such vCPU";
		json_uint(j, "vcpu", id);
	}
	vcpu_wait(n == 2 ? (int)id : -1);
	answer_end(&answer);
	return NULL;
}

static const char *run_stat(char **words, int n)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, "stat");

	(void)words;
	(void)n;
	json_bool(j, "host_lost", wire_lost());
	vcpu_stat(j);
	answer_end(&answer);
	return NULL;
}

static const char *run_quit(char **words, int n)
{
	(void)words;
	(void)n;
	quitting = true;
	return NULL;
}

/* ------------------------------------------------------------------ lines */

static const struct command commands[] = {
	{ "open", 4, file_open },   { "close", 2, file_close }, { "map", 6, file_map },
	{ "unmap", 3, file_unmap }, { "vcpu", -1, run_vcpu },	{ "kill", 3, run_kill },
	{ "async", 2, run_async },  { "trace", 2, run_trace },	{ "wait", -1, run_wait },
	{ "stat", 1, run_stat },    { "quit", 1, run_quit },
};

/* The words of a line up to a comment; WORDS_MAX + 1 when there are too many. */
static int split(char *line, char **words)
{
	static const char blank[] = " \t\r\n";
	char *rest = NULL;
	char *word;
	int n = 0;

	for (word = strtok_r(line, blank, &rest); word && *word != '#';
	     word = strtok_r(NULL, blank, &rest)) {
		if (n == WORDS_MAX)
			return WORDS_MAX + 1;
		words[n++] = word;
	}
	return n;
}

static const char *run_line(char *line)
{
	const struct command *c;
	char *words[WORDS_MAX];
	int n = split(line, words);

	if (n == 0)
		return NULL;
	if (n > WORDS_MAX)
		return "too many words";
	for (c = commands; c < commands + sizeof(commands) / sizeof(commands[0]); c++) {
		if (strcmp(c->name, words[0]))
			continue;
		if (c->words >= 0 && n != c->words)
			return "wrong number of arguments";
		return c->run(words, n);
	}
	return "no such command";
}

bool console_run(void)
{
	char *line = NULL;
	size_t room = 0;
	bool good = true;
	const char *wrong;
	struct answer answer;
	struct json *j;
	ssize_t len;

	while (!quitting && (len = getline(&line, &room, stdin)) >= 0) {
		line_number++;
		/* strlen() would ignore the rest of such a line */
		wrong = memchr(line, '\0', (size_t)len) ? "a NUL byte" : run_line(line);
		if (!wrong)
			continue;
		good = false;
		j = answer_begin(&answer, "error");
		json_uint(j, "line", line_number);
		json_text(j, "message", wrong);
		answer_end(&answer);
	}
	free(line);
	if (!quitting)
		vcpu_wait(-1);
	return good;
}
