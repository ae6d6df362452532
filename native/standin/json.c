/* SPDX-License-Identifier: Apache-2.0
 *
 * json.c - answers: one JSON object a line on stdout.
 *
 * Owns the writer's lock.  A line is built in the caller's own buffer and
 * written as a whole, so vCPUs never interleave.  JSON_LINE_MAX holds the longest
 * line; a field that did not fit would be left out, never cut in two.  Must not
 * know what the fields mean.
 */
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "standin.h"

enum {
	CLOSING_ROOM = 8,		/* for the brackets still open, and "\n" */
};

static pthread_mutex_t writer = PTHREAD_MUTEX_INITIALIZER;

__attribute__((format(printf, 2, 3)))
static void append(struct json *j, const char *format, ...)
{
	size_t room;
	va_list ap;
	int n;

	if (j->len + CLOSING_ROOM >= sizeof(j->line))
		return;
	room = sizeof(j->line) - CLOSING_ROOM - j->len;

	va_start(ap, format);
	n = vsnprintf(j->line + j->len, room, format, ap);
	va_end(ap);
	if (n > 0 && (size_t)n < room)
		j->len += (size_t)n;
}

static const char *comma(const struct json *j)
{
	char last = j->len ? j->line[j->len - 1] : '{';

	return last == '{' || last == '[' ? "" : ",";
}

void json_begin(struct json *j, const char *event)
{
	j->len = 0;
	append(j, "{\"event\":\"%s\"", event);
}

void json_int(struct json *j, const char *key, int64_t value)
{
	append(j, "%s\"%s\":%lld", comma(j), key, (long long)value);
}

void json_uint(struct json *j, const char *key, uint64_t value)
{
	append(j, "%s\"%s\":%llu", comma(j), key, (unsigned long long)value);
}

void json_bool(struct json *j, const char *key, bool value)
{
	append(j, "%s\"%s\":%s", comma(j), key, value ? "true" : "false");
}

void json_address(struct json *j, const char *key, uint64_t value)
{
	append(j, "%s\"%s\":\"0x%llx\"", comma(j), key, (unsigned long long)value);
}

/* Bytes outside ASCII are written as U+0080..U+00FF: a path need not be UTF-8,
 * and a line must be JSON whatever a script contains. */
void json_text(struct json *j, const char *key, const char *text)
{
	char escaped[6 * JSON_TEXT_MAX + 1];
	size_t len = 0;
	size_t i;

	for (i = 0; text[i] && i < JSON_TEXT_MAX; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c == '"' || c == '\\') {
			escaped[len++] = '\\';
			escaped[len++] = (char)c;
		} else if (c < 0x20 || c >= 0x7f) {
			len += (size_t)snprintf(escaped + len, 7, "\\u%04x", c);
		} else {
			escaped[len++] = (char)c;
		}
	}
	escaped[len] = '\0';
	append(j, "%s\"%s\":\"%s\"", comma(j), key, escaped);
}

void json_bytes(struct json *j, const char *key, const uint8_t *bytes, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	char hex[2 * ACCESS_BYTES_MAX + 1];
	size_t i;

	for (i = 0; i < len && i < ACCESS_BYTES_MAX; i++) {
		hex[2 * i] = digits[bytes[i] >> 4];
		hex[2 * i + 1] = digits[bytes[i] & 15];
	}
	hex[2 * i] = '\0';
	append(j, "%s\"%s\":\"%s\"", comma(j), key, hex);
}

void json_list_begin(struct json *j, const char *key)
{
	append(j, "%s\"%s\":[", comma(j), key);
}

void json_list_end(struct json *j)
{
	j->line[j->len++] = ']';
}

void json_object_begin(struct json *j)
{
	append(j, "%s{", comma(j));
}

void json_object_end(struct json *j)
{
	j->line[j->len++] = '}';
}

void json_emit(struct json *j)
{
	size_t written = 0;

	j->line[j->len++] = '}';
	j->line[j->len++] = '\n';

	pthread_mutex_lock(&writer);
	while (written < j->len) {
		ssize_t n = write(STDOUT_FILENO, j->line + written, j->len - written);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break;		/* nobody reads: the exit code still tells */
		written += (size_t)n;
	}
	pthread_mutex_unlock(&writer);
}
