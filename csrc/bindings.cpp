// The Python module: what every csrc/*/*_python.cpp adds to it, and the choice of an instruction
// set.
#include "common/dispatch.h"
#include "common/python.h"

std::vector<vimae::Add>& vimae::additions() {
  static std::vector<Add> all;
  return all;
}

PYBIND11_MODULE(_C, m) {
  m.def("level_name", &vimae::level_name);
  m.def("set_level", &vimae::set_level);
  m.def("runnable_levels", &vimae::runnable_levels);
  for (const vimae::Add add : vimae::additions()) add(m);
}
