/* SPDX-License-Identifier: Apache-2.0
 *
 * answer.c - writes answers and events to stdout, one JSON object per line.
 *
 * Owns the writer's lock.  A line is built in the caller's buffer and written as a whole, so that
 * lines of several vCPUs never mix.  Must not know the meaning of the fields.
 */
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "standin.h"

static pthread_mutex_t writer = PTHREAD_MUTEX_INITIALIZER;

struct json *answer_begin(struct answer *a, const char *event)
{
	json_begin(&a->json, a->line, sizeof(a->line) - 1);
	json_object_begin(&a->json, NULL);
	json_text(&a->json, "event", event);
	return &a->json;
}

void answer_end(struct answer *a)
{
	size_t written = 0, len;

	json_object_end(&a->json);
	len = a->json.len;
	a->line[len++] = '\n';

	pthread_mutex_lock(&writer);
	while (written < len) {
		ssize_t n = write(STDOUT_FILENO, a->line + written, len - written);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break; /* no reader; the exit status still shows the result */
		written += (size_t)n;
	}
	pthread_mutex_unlock(&writer);
}
