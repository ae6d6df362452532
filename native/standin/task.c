/* SPDX-License-Identifier: Apache-2.0
 *
 * task.c - tasks: contexts on a vCPU's thread.
 *
 * Owns their stacks, the switch between them and the thread's stack, on which the scheduler of
 * vcpu.c runs, and the thread's pointer to its vCPU.  A task runs one access after another and
 * never returns; a dead task is never switched to.  Must not choose the next task.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "standin.h"

enum {
	STACK_SIZE = 65536, /* without the frame of a signal */
	INITIAL_MXCSR = 0x1f80,
	INITIAL_X87_CONTROL = 0x37f,
};

__thread struct vcpu *this_vcpu;

#ifdef __SANITIZE_ADDRESS__
void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size);
void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size);
#else
static void __sanitizer_start_switch_fiber(void **fake_stack, const void *bottom, size_t size)
{
	(void)fake_stack;
	(void)bottom;
	(void)size;
}

static void __sanitizer_finish_switch_fiber(void *fake_stack, const void **bottom, size_t *size)
{
	(void)fake_stack;
	(void)bottom;
	(void)size;
}
#endif

__attribute__((noreturn)) static void task_main(void)
{
	struct vcpu *v = this_vcpu;
	struct task *t = v->current;

	__sanitizer_finish_switch_fiber(NULL, &v->stack, &v->stack_size);
	for (;;) {
		t->body(t);
		task_leave(t, TASK_DONE);
	}
}

/* The frame that task_switch() expects: MXCSR and the x87 control word, six registers, the return
 * address. */
static void *first_frame(uint8_t *top)
{
	uint64_t *sp = (uint64_t *)(void *)top;

	*--sp = 0; /* the stack alignment that the ABI requires after a call */
	*--sp = (uint64_t)(uintptr_t)task_main;
	sp -= 6;
	*--sp = INITIAL_MXCSR | (uint64_t)INITIAL_X87_CONTROL << 32;
	return sp;
}

/* -> NULL: no memory.  The page below the stack is a guard page. */
struct task *task_new(struct vcpu *v, unsigned int id, void (*body)(struct task *t))
{
	size_t page = DF_PAGE_SIZE;
	long frame = sysconf(_SC_MINSIGSTKSZ); /* AT_MINSIGSTKSZ: the room of AMX and AVX-512 */
	size_t size = STACK_SIZE + (frame > 0 ? (size_t)frame : 0);
	struct task *t = calloc(1, sizeof(*t));
	uint8_t *stack;

	size = (size + page - 1) / page * page;
	if (!t)
		return NULL;
	stack = mmap(NULL, page + size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (stack == MAP_FAILED) {
		free(t);
		return NULL;
	}
	if (mprotect(stack, page, PROT_NONE) < 0) {
		munmap(stack, page + size);
		free(t);
		return NULL;
	}
	t->id = id;
	t->vcpu = v;
	t->body = body;
	t->last = &t->first;
	t->stack = stack + page;
	t->stack_size = size;
	t->sp = first_frame(t->stack + size);
	return t;
}

/* Switch from the scheduler to the task; returns when it leaves. */
void task_run(struct task *t)
{
	struct vcpu *v = t->vcpu;

	t->state = TASK_RUNNING;
	v->current = t;
	count_one(&v->count.switches);
	trace_task(t, TRACE_SWITCH, 0, 0);
	__sanitizer_start_switch_fiber(&v->fake_stack, t->stack, t->stack_size);
	task_switch(&v->sp, t->sp);
	__sanitizer_finish_switch_fiber(v->fake_stack, NULL, NULL);
	v->current = NULL;
}

/* Switch from the task to the scheduler; returns when the task is run again. */
void task_leave(struct task *t, enum task_state state)
{
	struct vcpu *v = t->vcpu;

	t->state = state;
	__sanitizer_start_switch_fiber(&t->fake_stack, v->stack, v->stack_size);
	task_switch(&t->sp, v->sp);
	__sanitizer_finish_switch_fiber(t->fake_stack, NULL, NULL);
}
