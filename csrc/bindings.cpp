// The native core's table of contents for Python: one block per kernel, raw pointers as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "common/dispatch.h"
#include "median/median.h"
#include "mmd/mmd.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <class T>
void mmd_cpu(Address x, Address y, std::int64_t x_batch_stride, std::int64_t y_batch_stride,
             Address vx, Address vy, std::int64_t batch, std::int64_t n, std::int64_t m,
             std::int64_t d, bool rbf, const std::vector<double>& scales, bool unbiased,
             Address value, Address dx, Address dy, int threads) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  const vimae::MMD<T> args{at(x),
                           at(y),
                           x_batch_stride,
                           y_batch_stride,
                           at(vx),
                           at(vy),
                           batch,
                           n,
                           m,
                           d,
                           rbf ? vimae::Family::rbf : vimae::Family::imq,
                           scales.data(),
                           int(scales.size()),
                           unbiased,
                           at(value),
                           at(dx),
                           at(dy),
                           threads};
#define VIMAE_CALL mmd_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

template <class T>
void median_cpu(Address x, std::int64_t batch, std::int64_t N, std::int64_t d, Address median,
                int threads) {
  const vimae::Median<T> args{reinterpret_cast<const T*>(x), batch,  N, d,
                              reinterpret_cast<T*>(median),  threads};
#define VIMAE_CALL median_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("level_name", &vimae::level_name);
  m.def("set_level", &vimae::set_level);
  m.def("runnable_levels", &vimae::runnable_levels);

  m.def("mmd_cpu_float32", &mmd_cpu<float>, py::call_guard<py::gil_scoped_release>());
  m.def("mmd_cpu_float64", &mmd_cpu<double>, py::call_guard<py::gil_scoped_release>());

  m.def("median_cpu_float32", &median_cpu<float>, py::call_guard<py::gil_scoped_release>());
  m.def("median_cpu_float64", &median_cpu<double>, py::call_guard<py::gil_scoped_release>());
}
