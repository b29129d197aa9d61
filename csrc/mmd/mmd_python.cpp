#include "mmd/mmd.h"

#include "common/python.h"

namespace {

using vimae::Address;

template <class T>
void mmd_cpu(Address x, Address y, std::int64_t x_batch_stride, std::int64_t y_batch_stride,
             Address vx, Address vy, std::int64_t batch, std::int64_t n, std::int64_t m,
             std::int64_t d, bool rbf, const std::vector<double>& scales, bool unbiased,
             Address value, Address dx, Address dy, Address pairs, int threads) {
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
                           threads,
                           reinterpret_cast<double*>(pairs)};
#define VIMAE_CALL mmd_cpu(args)
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
              Address value, Address dx, Address dy, Address pairs, Address workspace,
              Address stream) {
  auto at = [](Address address) { return reinterpret_cast<T*>(address); };
  vimae::mmd_cuda(vimae::MMDCuda<T>{at(x),
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
                                    reinterpret_cast<double*>(pairs),
                                    reinterpret_cast<void*>(workspace),
                                    reinterpret_cast<void*>(stream)});
}
#endif

}  // namespace

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "mmd_cpu", mmd_cpu<float>, mmd_cpu<double>);
#ifdef VIMAE_CUDA
  m.attr("max_scales") = vimae::kMaxScales;
  both(m, "mmd_cuda_workspace", mmd_cuda_workspace<float>, mmd_cuda_workspace<double>);
  both(m, "mmd_cuda", mmd_cuda<float>, mmd_cuda<double>);
#endif
}
