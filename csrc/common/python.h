// A registry of what the Python module offers: every kernel adds its own functions to it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

namespace vimae {

using Address = std::uintptr_t;  // raw pointers come from Python as integers

// Runs when the module is loaded, for every VIMAE_PYTHON of its files.
using Add = void (*)(pybind11::module_&);
std::vector<Add>& additions();

struct Addition {
  explicit Addition(Add add) { additions().push_back(add); }
};

// NAME_float32 and NAME_float64, which run without Python's lock. Those that ask `interrupted`
// raise what a signal's handler raised (bindings.cpp).
template <class Float32, class Float64>
void both(pybind11::module_& m, const std::string& name, Float32 float32, Float64 float64) {
  namespace py = pybind11;
  m.def((name + "_float32").c_str(), float32, py::call_guard<py::gil_scoped_release>());
  m.def((name + "_float64").c_str(), float64, py::call_guard<py::gil_scoped_release>());
}

}  // namespace vimae

// VIMAE_PYTHON(m) { m.def(...); } adds functions to the module m, once per file.
#define VIMAE_PYTHON(m)                                 \
  static void add_to_module(pybind11::module_&);        \
  static const vimae::Addition addition(add_to_module); \
  static void add_to_module(pybind11::module_& m)
