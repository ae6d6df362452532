/* SPDX-License-Identifier: Apache-2.0
 *
 * report.c - the result of an access, and `stat`.
 *
 * Owns the fields of these lines.  Must not know how an access ended.
 */
#include <errno.h>
#include <stdio.h>

#include "standin.h"

static const char *outcome_name(enum outcome outcome)
{
	static const char *const names[OUTCOME_COUNT] = {
		[OUTCOME_OK] = "ok",	       [OUTCOME_SIGBUS] = "sigbus",
		[OUTCOME_SIGSEGV] = "sigsegv", [OUTCOME_EFAULT] = "efault",
		[OUTCOME_SHORT] = "short",     [OUTCOME_PANIC] = "panic",
		[OUTCOME_ERROR] = "error",     [OUTCOME_KILLED] = "killed",
	};

	return names[outcome];
}

static bool is_scan(enum op op)
{
	return op == OP_SCAN || op == OP_SCAN_ALL;
}

static void report_value(struct json *j, const struct access *a, const struct result *r)
{
	char hash[17];

	if (r->has_bytes)
		json_hex(j, "value", r->bytes, r->done);
	if (!r->has_value)
		return;
	if (a->op == OP_TOUCH || a->op == OP_FORK || a->op == OP_WORK) {
		json_uint(j, "value", r->value);
		return;
	}
	/* some JSON readers lose bits of a 64-bit number */
	snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)r->value);
	json_text(j, "value", hash);
}

static void report(int id, unsigned int task, const struct access *a, const struct result *r,
		   uint64_t ns)
{
	struct answer answer;
	struct json *j = answer_begin(&answer, "done");

	json_int(j, "vcpu", id);
	json_uint(j, "task", task);
	json_uint(j, "seq", a->seq);
	json_text(j, "op", ops[a->op].name);
	json_uint(j, "offset", a->offset);
	json_text(j, "outcome", outcome_name(r->outcome));
	if (r->faults) {
		json_address(j, "address", r->fault.address);
		json_int(j, "si_code", r->fault.si_code);
	}
	json_int(j, "error", r->error ? r->error : r->fault.error);
	json_uint(j, "reason", r->fault.reason);
	json_uint(j, "attempts", r->fault.attempts);
	json_uint(j, "done", r->done);
	if (is_scan(a->op)) {
		json_uint(j, "steps", r->steps);
		json_uint(j, "faults", r->faults);
	}
	if (a->op == OP_LAPS) {
		json_uint(j, "count", r->laps.count);
		json_uint(j, "total", r->laps.total);
		json_uint(j, "p50", r->laps.p50);
		json_uint(j, "p99", r->laps.p99);
		json_uint(j, "most", r->laps.most);
	}
	if (r->outcome == OUTCOME_PANIC)
		json_address(j, "instruction", r->instruction);
	if (r->signal)
		json_int(j, "signal", r->signal);
	report_value(j, a, r);
	json_uint(j, "events", r->events);
	json_uint(j, "parks", r->parks);
	json_uint(j, "ns", ns);
	answer_end(&answer);
}

void report_done(const struct task *t, const struct access *a, uint64_t ns)
{
	report(t->vcpu->id, t->id, a, &t->result, ns);
}

/* An access of a dead vCPU or task: ESRCH. */
void report_dead(int vcpu, unsigned int task, const struct access *a)
{
	static const struct result dead = { .outcome = OUTCOME_ERROR, .error = ESRCH };

	report(vcpu, task, a, &dead, 0);
}

/* ------------------------------------------------------------------ stat */

static void stat_counters(struct json *j, const struct vcpu_counters *c)
{
	json_uint(j, "events", c->events);
	json_uint(j, "spurious", c->spurious);
	json_uint(j, "stray", c->stray);
	json_uint(j, "not_present", c->not_present);
	json_uint(j, "declined", c->declined);
	json_uint(j, "ready", c->ready);
	json_uint(j, "errors", c->errors);
	json_uint(j, "early", c->early);
	json_uint(j, "wake_all", c->wake_all);
	json_uint(j, "deferred", c->deferred);
	json_uint(j, "acks", c->acks);
	json_uint(j, "switches", c->switches);
}

static void stat_task(struct json *j, const struct task *t)
{
	static const char *const states[] = {
		[TASK_IDLE] = "ready", /* as soon as it has something to do */
		[TASK_READY] = "ready",	 [TASK_RUNNING] = "running", [TASK_PARKED] = "parked",
		[TASK_DONE] = "running", [TASK_DEAD] = "dead",
	};

	json_object_begin(j, NULL);
	json_uint(j, "task", t->id);
	json_text(j, "state", states[t->state]);
	json_uint(j, "token", t->token);
	json_object_end(j);
}

void report_stat(struct json *j, const struct vcpu *v)
{
	static const char *const states[] = {
		[VCPU_ABSENT] = "absent",
		[VCPU_IDLE] = "idle",
		[VCPU_RUNNING] = "running",
		[VCPU_DEAD] = "dead",
	};
	int i;

	json_object_begin(j, NULL);
	json_int(j, "vcpu", v->id);
	json_int(j, "tid", v->tid);
	json_text(j, "state", states[v->state]);
	json_uint(j, "queued", v->queued);
	for (i = 0; i < OUTCOME_COUNT; i++)
		json_uint(j, outcome_name((enum outcome)i), v->outcomes[i]);
	stat_counters(j, &v->count);
	json_list_begin(j, "tasks");
	for (i = 0; i < TASK_COUNT; i++) {
		if (v->tasks[i])
			stat_task(j, v->tasks[i]);
	}
	json_list_end(j);
	json_object_end(j);
}
