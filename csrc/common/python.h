// A registry of what the Python module offers: every kernel adds its own functions to it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace vimae {

// Runs when the module is loaded, for every VIMAE_PYTHON of its files.
using Add = void (*)(pybind11::module_&);
std::vector<Add>& additions();

struct Addition {
  explicit Addition(Add add) { additions().push_back(add); }
};

// An argument from Python, as whatever field of a call it fills: a pointer from an address or None,
// pointers to constant numbers from a list of them too, which `numbers` keeps.
struct Field {
  pybind11::handle argument;
  std::vector<double>* numbers;

  template <class P>
  operator P*() const {
    if constexpr (std::is_same_v<P, const double>)
      if (PyList_Check(argument.ptr())) {
        *numbers = argument.cast<std::vector<double>>();
        return numbers->data();
      }
    if (argument.is_none()) return nullptr;
    return static_cast<P*>(checked(PyLong_AsVoidPtr(argument.ptr())));
  }
  template <class V, std::enable_if_t<std::is_arithmetic_v<V> || std::is_enum_v<V>, int> = 0>
  operator V() const {
    if constexpr (std::is_floating_point_v<V>)
      return V(checked(PyFloat_AsDouble(argument.ptr())));
    else
      return static_cast<V>(checked(PyLong_AsLongLong(argument.ptr())));
  }

  // What a conversion of Python's gave, which takes a few nanoseconds.
  template <class V>
  static V checked(V value) {
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    return value;
  }
};

template <class Call, class, class... Fields>
struct IsFilledBy : std::false_type {};
template <class Call, class... Fields>
struct IsFilledBy<Call, std::void_t<decltype(Call{std::declval<Fields>()...})>, Fields...>
    : std::true_type {};

// How many fields a call has, those of structs in it among them.
template <class Call, class... Fields>
constexpr std::size_t count_fields() {
  if constexpr (IsFilledBy<Call, void, Field, Fields...>::value)
    return count_fields<Call, Field, Fields...>();
  else
    return sizeof...(Fields);
}

template <class Call, std::size_t... I>
Call filled(const pybind11::args& given, std::vector<double>& numbers, std::index_sequence<I...>) {
  return Call{Field{pybind11::handle(PyTuple_GET_ITEM(given.ptr(), I)), &numbers}...};
}

// Adds the function `name`, which takes the fields of a call in their order and runs `run` without
// Python's lock. If that asks `interrupted`, it raises what a signal's handler raised
// (bindings.cpp).
template <class Call, class Result>
void offer(pybind11::module_& m, const std::string& name, Result (*run)(const Call&)) {
  constexpr std::size_t fields = count_fields<Call>();
  m.def(name.c_str(), [=](const pybind11::args& given) {
    if (given.size() != fields)
      throw pybind11::type_error(name + " takes " + std::to_string(fields) + " arguments; got " +
                                 std::to_string(given.size()));
    std::vector<double> numbers;
    const Call call = filled<Call>(given, numbers, std::make_index_sequence<fields>());
    const pybind11::gil_scoped_release unlocked;
    return run(call);
  });
}

// NAME_float32 and NAME_float64.
template <template <class> class Call, class Result>
void offer(pybind11::module_& m, const std::string& name, Result (*float32)(const Call<float>&),
           Result (*float64)(const Call<double>&)) {
  offer(m, name + "_float32", float32);
  offer(m, name + "_float64", float64);
}

}  // namespace vimae

// The functions of one operation, NAME_cpu of the struct CALL and on GPUs NAME_cuda and
// NAME_cuda_workspace, in the module m.
#define VIMAE_OFFER_CPU(m, name, Call) \
  vimae::offer<vimae::Call>(m, #name "_cpu", vimae::name##_cpu, vimae::name##_cpu)
#ifdef VIMAE_CUDA
#define VIMAE_OFFER(m, name, Call)                                                     \
  VIMAE_OFFER_CPU(m, name, Call);                                                      \
  vimae::offer<vimae::Call>(m, #name "_cuda", vimae::name##_cuda, vimae::name##_cuda); \
  vimae::offer<vimae::Call>(m, #name "_cuda_workspace", vimae::name##_cuda_workspace,  \
                            vimae::name##_cuda_workspace)
#else
#define VIMAE_OFFER VIMAE_OFFER_CPU
#endif

// VIMAE_PYTHON(m) { m.def(...); } adds functions to the module m, once per file.
#define VIMAE_PYTHON(m)                                 \
  static void add_to_module(pybind11::module_&);        \
  static const vimae::Addition addition(add_to_module); \
  static void add_to_module(pybind11::module_& m)
