/* SPDX-License-Identifier: Apache-2.0
 *
 * files.c - the guest's open files and their mappings.
 *
 * Owns the names that a script gives to files, and their descriptors.  Each function is a command
 * of the console: it takes the command's words and returns NULL or the error.  Main thread only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

struct file {
	struct file *next;
	char *name;
	int fd;
	uint64_t fh;
};

static struct file *files;
static char reason[128]; /* a formatted error */

static const char *because(const char *what, int error)
{
	snprintf(reason, sizeof(reason), "%s: %s", what, strerror(error));
	return reason;
}

static const char *refused(int error)
{
	return error < 0 ? "the host is gone" : because("the host refused", error);
}

static struct file **find(const char *name)
{
	struct file **f;

	for (f = &files; *f; f = &(*f)->next) {
		if (strcmp((*f)->name, name) == 0)
			break;
	}
	return f;
}

const char *file_open(char **words, int n)
{
	struct df_open msg = { .h.type = DF_OPEN };
	struct file *f;
	struct answer answer;
	struct json *j;
	int error;
	int flags;
	int fd;

	(void)n;
	if (*find(words[1]))
		return "this name is open already";
	if (strcmp(words[3], "ro") == 0)
		flags = O_RDONLY;
	else if (strcmp(words[3], "rw") == 0)
		flags = O_RDWR;
	else
		return "open for ro or rw";

	fd = open(words[2], flags | O_CLOEXEC);
	if (fd < 0)
		return because("open", errno);
	error = wire_call(&msg.h, sizeof(msg), &fd, 1, NULL);
	if (error) {
		close(fd);
		return refused(error);
	}

	f = calloc(1, sizeof(*f));
	if (!f || !(f->name = strdup(words[1])))
		abort();
	f->fd = fd;
	f->fh = msg.fh;
	f->next = files;
	files = f;

	j = answer_begin(&answer, "open");
	json_text(j, "name", f->name);
	json_uint(j, "fh", f->fh);
	json_uint(j, "size", msg.size);
	answer_end(&answer);
	return NULL;
}

const char *file_close(char **words, int n)
{
	struct df_release msg = { .h.type = DF_RELEASE };
	struct file **where = find(words[1]);
	struct file *f = *where;
	struct answer answer;
	struct json *j;
	int error;

	(void)n;
	if (!f)
		return "no such open file";
	msg.fh = f->fh;
	error = wire_call(&msg.h, sizeof(msg), NULL, 0, NULL);

	j = answer_begin(&answer, "close");
	json_text(j, "name", f->name);
	*where = f->next;
	close(f->fd);
	free(f->name);
	free(f);
	if (error)
		return refused(error);
	answer_end(&answer);
	return NULL;
}

/* ------------------------------------------------------------------ mappings */

static bool page_aligned(uint64_t value)
{
	return value % DF_PAGE_SIZE == 0;
}

static int remove_mapping(uint64_t moffset, uint64_t len)
{
	struct df_removemapping msg = {
		.h.type = DF_REMOVEMAPPING,
		.count = 1,
		.one[0] = { .moffset = moffset, .len = len },
	};

	return wire_call(&msg.h, offsetof(struct df_removemapping, one[1]), NULL, 0, NULL);
}

static void mapping_done(const char *event, const char *name, uint64_t moffset, uint64_t len)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, event);

	if (name)
		json_text(j, "name", name);
	json_uint(j, "offset", moffset);
	json_uint(j, "len", len);
	json_address(j, "address", window_base + moffset);
	answer_end(&answer);
}

/* Checks page alignment only; the host must check for multiples of DF_RANGE_SIZE. */
const char *file_map(char **words, int n)
{
	struct df_setupmapping msg = { .h.type = DF_SETUPMAPPING };
	struct file *f = *find(words[1]);
	uint64_t foffset, len, moffset;
	const char *wrong;
	bool writable;
	int error;
	int fd = -1;

	(void)n;
	if (!f)
		return "no such open file";
	if (!parse_number(words[2], &foffset) || !parse_number(words[3], &len) ||
	    !parse_number(words[4], &moffset))
		return "not a number";
	wrong = check_range(moffset, len);
	if (wrong)
		return wrong;
	if (!page_aligned(foffset) || !page_aligned(len) || !page_aligned(moffset))
		return "not a multiple of the page size";
	if (strcmp(words[5], "r") && strcmp(words[5], "w"))
		return "map for r or w";
	writable = words[5][0] == 'w';

	msg.fh = f->fh;
	msg.foffset = foffset;
	msg.len = len;
	msg.moffset = moffset;
	msg.flags = DF_SETUPMAPPING_READ | (writable ? DF_SETUPMAPPING_WRITE : 0);
	error = wire_call(&msg.h, sizeof(msg), NULL, 0, &fd);
	if (error)
		return refused(error);
	error = window_map(moffset, len, fd, foffset, writable);
	if (error) {
		wrong = because("mapping the page cache", -error);
		remove_mapping(moffset, len);
	}
	close(fd);
	if (wrong)
		return wrong;
	mapping_done("map", f->name, moffset, len);
	return NULL;
}

const char *file_unmap(char **words, int n)
{
	uint64_t moffset, len;
	const char *wrong;
	int error;

	(void)n;
	if (!parse_number(words[1], &moffset) || !parse_number(words[2], &len))
		return "not a number";
	wrong = check_range(moffset, len);
	if (wrong)
		return wrong;
	if (!page_aligned(len) || !page_aligned(moffset))
		return "not a multiple of the page size";

	/* The host first, as virtiofs does: a page that a vCPU touches in between is still
	 * registered, and the host fails the fault. */
	error = remove_mapping(moffset, len);
	if (error)
		return refused(error);
	error = window_unmap(moffset, len);
	if (error)
		return because("unmap", -error);
	mapping_done("unmap", NULL, moffset, len);
	return NULL;
}
