/* SPDX-License-Identifier: Apache-2.0
 *
 * hosting_parse.c - the command that makes a stand-in a host.
 *
 * Owns the words of a design: the decisions themselves are in vmm/designs, and come as
 * one answer for each way a vCPU can wait.  No side effects.
 */
#include <string.h>

#include "hosting.h"
#include "standin.h"

static bool parse_answer(const char *word, enum df_answer *answer)
{
	static const char *const names[] = {
		[DF_ANSWER_WAKE] = "wake",
		[DF_ANSWER_REPORT] = "report",
		[DF_ANSWER_POISON] = "poison",
		[DF_ANSWER_STOP] = "stop",
	};
	int i;

	for (i = DF_ANSWER_WAKE; i <= DF_ANSWER_STOP; i++) {
		if (strcmp(word, names[i]) == 0) {
			*answer = (enum df_answer)i;
			return true;
		}
	}
	return false;
}

/* ANSWER[/OTHERWISE] for SYNC, HALTED and TOLD, with commas between */
static bool parse_answers(char *words, struct hosting_answer *answers)
{
	char *word, *otherwise;
	int wait;

	for (wait = 0; wait <= DF_WAIT_TOLD; wait++) {
		word = strsep(&words, ",");
		if (!word)
			return false;
		otherwise = strchr(word, '/');
		if (otherwise)
			*otherwise++ = '\0';
		answers[wait].otherwise = DF_ANSWER_POISON;
		if (!parse_answer(word, &answers[wait].answer) ||
		    (otherwise && !parse_answer(otherwise, &answers[wait].otherwise)))
			return false;
	}
	return !words;
}

/* host PATH MOFFSET LEN ABI CPUID FLAGS ANSWERS */
const char *hosting_parse(char **words, uint64_t *moffset, struct hosting *host)
{
	uint64_t abi, cpuid, flags;
	const char *wrong;

	if (!parse_number(words[2], moffset) || !parse_number(words[3], &host->len) ||
	    !parse_number(words[4], &abi) || !parse_number(words[5], &cpuid) ||
	    !parse_number(words[6], &flags))
		return "not a number";
	wrong = check_range(*moffset, host->len);
	if (wrong)
		return wrong;
	if (*moffset % DF_PAGE_SIZE || host->len % DF_PAGE_SIZE)
		return "not a multiple of the page size";
	if (abi >= DF_ABI_COUNT)
		return "no such ABI";
	if (cpuid > UINT32_MAX || flags & ~(uint64_t)(DF_GUEST_TELL_FAILURES | DF_GUEST_ERROR_GFNS))
		return "unknown bits";
	if (!parse_answers(words[7], host->design.answers))
		return "not three answers";
	host->design.abi = (enum df_abi)abi;
	host->design.cpuid = (uint32_t)cpuid;
	host->design.flags = (uint32_t)flags;
	return NULL;
}
