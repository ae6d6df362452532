/* SPDX-License-Identifier: Apache-2.0
 *
 * json.c - the JSON writer.
 *
 * Owns the syntax.  Removes a field that does not fit as a whole, so that no field is cut.
 * Must not know the meaning of the fields.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "json.h"

static const char HEX_DIGITS[] = "0123456789abcdef";

/* A field that is being written; `fits`: all of it has fitted so far. */
struct field {
	struct json *j;
	size_t start;
	bool fits;
};

static void put(struct field *f, const char *bytes, size_t len)
{
	struct json *j = f->j;

	f->fits = f->fits && j->len + len + j->open <= j->room;
	if (f->fits) {
		memcpy(j->text + j->len, bytes, len);
		j->len += len;
	}
}

static void put_text(struct field *f, const char *text)
{
	char escape[] = "\\u0000";

	put(f, "\"", 1);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || c >= 0x7f) {
			escape[4] = HEX_DIGITS[c >> 4];
			escape[5] = HEX_DIGITS[c & 15];
			put(f, escape, 6);
			continue;
		}
		if (c == '"' || c == '\\')
			put(f, "\\", 1);
		put(f, text, 1);
	}
	put(f, "\"", 1);
}

static struct field begin(struct json *j, const char *key)
{
	struct field f = { .j = j, .start = j->len, .fits = !j->left_out };

	if (j->len && !strchr("{[", j->text[j->len - 1]))
		put(&f, ",", 1);
	if (key) {
		put_text(&f, key);
		put(&f, ":", 1);
	}
	return f;
}

static bool end(struct field *f)
{
	if (!f->fits)
		f->j->len = f->start;
	return f->fits;
}

__attribute__((format(printf, 3, 4))) static void field(struct json *j, const char *key,
							const char *format, ...)
{
	struct field f = begin(j, key);
	char value[64];
	va_list ap;
	int len;

	va_start(ap, format);
	len = vsnprintf(value, sizeof(value), format, ap);
	va_end(ap);
	if (len < 0 || (size_t)len >= sizeof(value))
		f.fits = false;
	else
		put(&f, value, (size_t)len);
	end(&f);
}

/* Reserves the byte of the closing bracket. */
static void open(struct json *j, const char *key, const char *bracket)
{
	struct field f = begin(j, key);

	j->open++;
	put(&f, bracket, 1);
	if (!end(&f)) {
		j->open--;
		j->left_out++;
	}
}

static void close(struct json *j, char bracket)
{
	if (j->left_out) {
		j->left_out--;
		return;
	}
	j->open--;
	j->text[j->len++] = bracket;
}

void json_begin(struct json *j, char *text, size_t room)
{
	*j = (struct json){ .text = text, .room = room };
}

void json_object_begin(struct json *j, const char *key)
{
	open(j, key, "{");
}

void json_object_end(struct json *j)
{
	close(j, '}');
}

void json_list_begin(struct json *j, const char *key)
{
	open(j, key, "[");
}

void json_list_end(struct json *j)
{
	close(j, ']');
}

void json_int(struct json *j, const char *key, int64_t value)
{
	field(j, key, "%" PRId64, value);
}

void json_uint(struct json *j, const char *key, uint64_t value)
{
	field(j, key, "%" PRIu64, value);
}

void json_real(struct json *j, const char *key, double value)
{
	field(j, key, "%.3f", value);
}

void json_bool(struct json *j, const char *key, bool value)
{
	field(j, key, "%s", value ? "true" : "false");
}

void json_null(struct json *j, const char *key)
{
	field(j, key, "null");
}

void json_address(struct json *j, const char *key, uint64_t value)
{
	field(j, key, "\"0x%" PRIx64 "\"", value);
}

void json_text(struct json *j, const char *key, const char *text)
{
	struct field f = begin(j, key);

	put_text(&f, text);
	end(&f);
}

void json_hex(struct json *j, const char *key, const uint8_t *bytes, size_t len)
{
	struct field f = begin(j, key);
	size_t i;

	put(&f, "\"", 1);
	for (i = 0; i < len; i++) {
		const char pair[] = { HEX_DIGITS[bytes[i] >> 4], HEX_DIGITS[bytes[i] & 15] };

		put(&f, pair, sizeof(pair));
	}
	put(&f, "\"", 1);
	end(&f);
}
