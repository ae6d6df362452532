/* SPDX-License-Identifier: Apache-2.0
 *
 * json.h - the JSON writer: into the caller's buffer, without allocation.
 *
 * Owns no state.  `key` is NULL for an element of a list and for the outermost object.
 * A field or an object that does not fit is left out as a whole, so that the text is valid
 * JSON for any `room`.
 */
#ifndef DAXFAULT_JSON_H
#define DAXFAULT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json {
	char *text; /* no NUL at its end */
	size_t room, len;
	unsigned int open;     /* open objects and lists: a closing bracket each is reserved */
	unsigned int left_out; /* nested objects and lists that did not fit */
};

void json_begin(struct json *j, char *text, size_t room);
void json_object_begin(struct json *j, const char *key);
void json_object_end(struct json *j);
void json_list_begin(struct json *j, const char *key);
void json_list_end(struct json *j);

void json_int(struct json *j, const char *key, int64_t value);
void json_uint(struct json *j, const char *key, uint64_t value);
void json_real(struct json *j, const char *key, double value); /* three decimals */
void json_bool(struct json *j, const char *key, bool value);
void json_null(struct json *j, const char *key);
void json_address(struct json *j, const char *key, uint64_t value); /* "0x..." */
/* Bytes outside ASCII become U+0080 to U+00FF: a path need not be UTF-8. */
void json_text(struct json *j, const char *key, const char *text);
void json_hex(struct json *j, const char *key, const uint8_t *bytes, size_t len);

#endif
