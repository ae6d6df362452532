/* SPDX-License-Identifier: Apache-2.0
 *
 * interpreter.c - notifies the interpreter's main thread, when it next runs Python code, that one
 * of its guards has noted a fault.
 *
 * Owns the one pending call (Py_AddPendingCall(): any thread may make it, with or without the GIL;
 * it runs in the main thread and may raise).  Must not know what is raised: daxfault.guards does.
 */
#include <Python.h>

#include <stdatomic.h>

#include "internal.h"
#include "interpreter.h"

static atomic_bool pending;

static int notify(void *unused)
{
	PyObject *name, *module, *result = NULL;

	(void)unused;
	atomic_store(&pending, false);
	name = PyUnicode_FromString("daxfault.guards");
	module = name ? PyImport_GetModule(name) : NULL;
	Py_XDECREF(name);
	if (!module)
		return PyErr_Occurred() ? -1 : 0;
	result = PyObject_CallMethod(module, "_fault_noted", NULL);
	Py_DECREF(module);
	if (!result)
		return -1;
	Py_DECREF(result);
	return 0;
}

static void hand_over(void)
{
	/* one call serves any number of faults; if the queue is full, the next fault tries again */
	if (!atomic_exchange(&pending, true) && Py_AddPendingCall(notify, NULL))
		atomic_store(&pending, false);
}

void df_guard_notify_python(void)
{
	guards_notify = hand_over;
}
