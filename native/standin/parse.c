/* SPDX-License-Identifier: Apache-2.0
 *
 * parse.c - parses numbers, ranges and accesses of a script.
 *
 * Owns no state; no side effects.  A valid access is inside the window.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "standin.h"

/* Decimal, or hexadecimal after 0x, with an optional K, M or G.  No sign, no
 * blanks, and no octal: 0010 is ten. */
bool parse_number(const char *word, uint64_t *value)
{
	bool hex = word[0] == '0' && (word[1] == 'x' || word[1] == 'X');
	const char *digits = hex ? word + 2 : word;
	unsigned int shift = 0;
	char *end;

	if (hex ? !isxdigit((unsigned char)*digits) : !isdigit((unsigned char)*digits))
		return false;
	/* strtoull() would accept a second 0x */
	if (hex && (digits[1] == 'x' || digits[1] == 'X'))
		return false;
	errno = 0;
	*value = strtoull(digits, &end, hex ? 16 : 10);
	if (errno)
		return false;

	if (*end == 'K')
		shift = 10;
	else if (*end == 'M')
		shift = 20;
	else if (*end == 'G')
		shift = 30;
	if (shift)
		end++;
	if (*end || *value > UINT64_MAX >> shift)
		return false;
	*value <<= shift;
	return true;
}

/* N, or N.T. */
bool parse_vcpu(const char *word, int *vcpu, unsigned int *task)
{
	const char *dot = strchr(word, '.');
	char number[32];
	uint64_t value = 0;
	size_t len = dot ? (size_t)(dot - word) : strlen(word);

	if (dot && (!parse_number(dot + 1, &value) || value >= TASK_COUNT))
		return false;
	*task = (unsigned int)value;
	if (len >= sizeof(number))
		return false;
	memcpy(number, word, len);
	number[len] = '\0';
	if (!parse_number(number, &value) || value >= VCPU_COUNT)
		return false;
	*vcpu = (int)value;
	return true;
}

const char *check_range(uint64_t offset, uint64_t len)
{
	if (len == 0)
		return "a range needs a length";
	if (offset > window_len || len > window_len - offset)
		return "beyond the window";
	return NULL;
}

static bool parse_bytes(const char *hex, struct access *a, uint64_t max)
{
	size_t digits = strlen(hex);
	size_t i;

	if (digits == 0 || digits % 2 || digits / 2 > max)
		return false;
	a->len = digits / 2;
	a->bytes = malloc(a->len);
	if (!a->bytes)
		abort();
	for (i = 0; i < a->len; i++) {
		char pair[3] = { hex[2 * i], hex[2 * i + 1], '\0' };

		if (!isxdigit((unsigned char)pair[0]) || !isxdigit((unsigned char)pair[1]))
			return false;
		a->bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
	}
	return true;
}

static bool parse_disposition(const char *word, enum sigbus_disposition *disposition)
{
	static const char *const names[] = {
		[SIGBUS_HANDLE] = "handle",
		[SIGBUS_DEFAULT] = "default",
		[SIGBUS_IGNORE] = "ignore",
		[SIGBUS_BLOCK] = "block",
	};
	unsigned int i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(word, names[i]) == 0) {
			*disposition = (enum sigbus_disposition)i;
			return true;
		}
	}
	return false;
}

static bool parse_argument(char kind, const char *word, struct access *a, uint64_t max)
{
	uint64_t byte;

	switch (kind) {
	case 'o':
		return parse_number(word, &a->offset);
	case 'l':
		return parse_number(word, &a->len) && (!max || a->len <= max);
	case 's':
		return parse_number(word, &a->stride) && a->stride > 0;
	case 'r':
		return parse_number(word, &a->seed);
	case 'n':
		return parse_number(word, &a->new_offset);
	case 'm':
		return parse_number(word, &a->milliseconds) && a->milliseconds <= ACCESS_WORK_MAX;
	case 'x':
		return parse_bytes(word, a, max);
	case 'd':
		return parse_disposition(word, &a->disposition);
	default:
		if (!parse_number(word, &byte) || byte > 255)
			return false;
		a->byte = (uint8_t)byte;
		return true;
	}
}

const char *parse_access(char **words, int n, struct access *a)
{
	const struct op_description *op;
	const char *wrong;
	int i;

	if (n > 1 && strcmp(words[0], "irqoff") == 0) {
		a->irqoff = true;
		words++;
		n--;
	}
	for (op = ops; op < ops + OP_COUNT && strcmp(op->name, words[0]); op++)
		;
	if (op == ops + OP_COUNT)
		return "no such access";
	if (n - 1 != (int)strlen(op->arguments))
		return "wrong number of arguments";

	a->op = (enum op)(op - ops);
	for (i = 1; i < n; i++) {
		if (!parse_argument(op->arguments[i - 1], words[i], a, op->len_max))
			return "bad argument";
	}
	if (a->op == OP_SIGBUS || a->op == OP_WORK)
		return NULL;
	if (strcmp(op->arguments, "o") == 0)
		a->len = 1;
	wrong = check_range(a->offset, a->len);
	if (!wrong && a->op == OP_REMAP)
		wrong = check_range(a->new_offset, a->len);
	return wrong;
}
