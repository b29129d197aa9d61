// The Python module: what every csrc/*/*_python.cpp adds to it, and the choice of an instruction
// set.
#include <chrono>

#include "common/dispatch.h"
#include "common/interrupt.h"
#include "common/python.h"

namespace {

unsigned long main_thread;  // written when the module is loaded, and not again

// Python runs the handlers of signals in its main thread, when asked: so that one asks, and not
// more often than a user notices, for another thread may keep the lock for some milliseconds.
bool signalled() {
  using Clock = std::chrono::steady_clock;
  static Clock::time_point last;
  if (PyThread_get_thread_ident() != main_thread) return false;
  const Clock::time_point now = Clock::now();
  if (now - last < std::chrono::milliseconds(200)) return false;
  last = now;
  const pybind11::gil_scoped_acquire lock;
  // What a handler raised stays set.
  return PyErr_CheckSignals() != 0;
}

}  // namespace

std::vector<vimae::Add>& vimae::additions() {
  static std::vector<Add> all;
  return all;
}

// Nothing here needs Python's lock: the additions are complete once the library is loaded, the
// level and the question of interruption are atomic, and what `signalled` keeps is the main
// thread's own.
PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  m.def("level_name", &vimae::level_name);
  m.def("set_level", &vimae::set_level);
  m.def("runnable_levels", &vimae::runnable_levels);
  main_thread = pybind11::module_::import("threading")
                    .attr("main_thread")()
                    .attr("ident")
                    .cast<unsigned long>();
  vimae::set_interruption(signalled);
  pybind11::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const vimae::Interrupted&) {
      // Python's error is set already, by `signalled`.
    }
  });
  for (const vimae::Add add : vimae::additions()) add(m);
}
