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

#ifdef VIMAE_CUDA
// Bytes of workspace a call will need; the flags say which of its outputs there will be.
template <class T>
std::int64_t mmd_cuda_workspace(std::int64_t batch, std::int64_t n, std::int64_t m, std::int64_t d,
                                bool dx, bool dy, bool hessian) {
  static T there;
  vimae::MMDCuda<T> args{};
  args.batch = batch, args.n = n, args.m = m, args.d = d;
  args.dx = dx ? &there : nullptr, args.dy = dy ? &there : nullptr,
  args.vx = hessian ? &there : nullptr;
  return vimae::mmd_cuda_workspace(args);
}

template <class T>
void mmd_cuda(Address x, Address y, std::int64_t x_batch_stride, std::int64_t y_batch_stride,
              Address vx, Address vy, std::int64_t batch, std::int64_t n, std::int64_t m,
              std::int64_t d, bool rbf, const std::vector<double>& scales, bool unbiased,
              Address value, Address dx, Address dy, Address workspace, Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::mmd_cuda(vimae::MMDCuda<T>{at(x), at(y), x_batch_stride, y_batch_stride, at(vx), at(vy),
                                    batch, n, m, d, rbf ? vimae::Family::rbf : vimae::Family::imq,
                                    scales.data(), int(scales.size()), unbiased, at(value), at(dx),
                                    at(dy), reinterpret_cast<void*>(workspace),
                                    reinterpret_cast<void*>(stream)});
}

template <class T>
std::int64_t median_cuda_workspace(std::int64_t batch, std::int64_t N) {
  vimae::MedianCuda<T> args{};
  args.batch = batch, args.N = N;
  return vimae::median_cuda_workspace(args);
}

template <class T>
void median_cuda(Address x, std::int64_t batch, std::int64_t N, std::int64_t d, Address median,
                 Address workspace, Address stream) {
  vimae::median_cuda(
      vimae::MedianCuda<T>{reinterpret_cast<const T*>(x), batch, N, d, reinterpret_cast<T*>(median),
                           reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("level_name", &vimae::level_name);
  m.def("set_level", &vimae::set_level);
  m.def("runnable_levels", &vimae::runnable_levels);

  m.def("mmd_cpu_float32", &mmd_cpu<float>, py::call_guard<py::gil_scoped_release>());
  m.def("mmd_cpu_float64", &mmd_cpu<double>, py::call_guard<py::gil_scoped_release>());

  m.def("median_cpu_float32", &median_cpu<float>, py::call_guard<py::gil_scoped_release>());
  m.def("median_cpu_float64", &median_cpu<double>, py::call_guard<py::gil_scoped_release>());

#ifdef VIMAE_CUDA
  m.attr("max_scales") = vimae::kMaxScales;
  m.def("mmd_cuda_workspace_float32", &mmd_cuda_workspace<float>);
  m.def("mmd_cuda_workspace_float64", &mmd_cuda_workspace<double>);
  m.def("mmd_cuda_float32", &mmd_cuda<float>, py::call_guard<py::gil_scoped_release>());
  m.def("mmd_cuda_float64", &mmd_cuda<double>, py::call_guard<py::gil_scoped_release>());
  m.def("median_cuda_workspace_float32", &median_cuda_workspace<float>);
  m.def("median_cuda_workspace_float64", &median_cuda_workspace<double>);
  m.def("median_cuda_float32", &median_cuda<float>, py::call_guard<py::gil_scoped_release>());
  m.def("median_cuda_float64", &median_cuda<double>, py::call_guard<py::gil_scoped_release>());
#endif
}
