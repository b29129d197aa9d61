#include "median/median.h"

#include "common/python.h"

namespace {

using vimae::Address;

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

VIMAE_PYTHON(m) {
  using vimae::both;
  both(m, "median_cpu", median_cpu<float>, median_cpu<double>);
#ifdef VIMAE_CUDA
  both(m, "median_cuda_workspace", median_cuda_workspace<float>, median_cuda_workspace<double>);
  both(m, "median_cuda", median_cuda<float>, median_cuda<double>);
#endif
}
