/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_parse.c - native/standin/parse.c reads any line of a script; an access that passes is inside
 * the window.
 */
#include "standin/parse.c"

uint64_t window_len = 1 << 20;

/* One with every kind of argument, and those whose ranges are checked apart. */
const struct op_description ops[OP_COUNT] = {
	[0 ... OP_COUNT - 1] = { .name = "other", .arguments = "olsrnmdb", .len_max = 64 },
	[0] = { .name = "read", .arguments = "o" },
	[1] = { .name = "bytes", .arguments = "ox", .len_max = 64 },
	[OP_REMAP] = { .name = "remap", .arguments = "oln" },
	[OP_SIGBUS] = { .name = "sigbus", .arguments = "d" },
	[OP_WORK] = { .name = "work", .arguments = "m" },
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char line[512], *words[16], *rest = line;
	struct access a = { 0 };
	unsigned int task;
	uint64_t value;
	int n = 0, vcpu;

	if (size >= sizeof(line))
		return 0;
	memcpy(line, data, size);
	line[size] = '\0';
	parse_number(line, &value);
	parse_vcpu(line, &vcpu, &task);
	for (char *word; n < 16 && (word = strsep(&rest, " "));)
		words[n++] = word;
	if (!parse_access(words, n, &a) && a.op != OP_SIGBUS && a.op != OP_WORK &&
	    (a.offset > window_len || a.len > window_len - a.offset))
		abort();
	free(a.bytes);
	return 0;
}
