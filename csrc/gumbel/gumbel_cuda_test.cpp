// gumbel_cuda, run on the host by testing/cuda_shim.h, against gumbel_cpu in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gumbel/gumbel.h"
#include "testing/cuda_shim.h"

using namespace vimae;

namespace {

int failures = 0;
bool stop_at_first = false;

void gumbel_dispatch(const Gumbel<double>& args) {
#define VIMAE_CALL gumbel_cpu(args)
  VIMAE_DISPATCH
#undef VIMAE_CALL
}

void expect(bool good, const char* what, std::int64_t K, double got, double want) {
  if (good) return;
  std::printf("FAILED %s of %d: %.9g for %.9g\n", what, int(K), got, want);
  ++failures;
  if (stop_at_first) std::exit(1);
}

template <class T>
void check(std::int64_t batch, std::int64_t K, std::int64_t seeds, double tau) {
  std::mt19937_64 random(batch * 1000 + K);
  std::normal_distribution<double> normal;
  const std::int64_t size = batch * K;
  std::vector<T> logits(size), gradient(size);
  for (T& l : logits) l = T(3 * normal(random));
  for (T& g : gradient) g = T(normal(random));
  // A row with a NaN and one with nothing possible.
  if (batch > 2) {
    logits[K + K / 2] = std::numeric_limits<T>::quiet_NaN();
    for (std::int64_t k = 0; k < K; ++k) logits[2 * K + k] = -std::numeric_limits<T>::infinity();
  }
  if (K > 2) logits[1] = -std::numeric_limits<T>::infinity();
  std::vector<std::int64_t> seed(seeds);
  for (std::int64_t& s : seed) s = std::int64_t(random());

  const std::vector<double> exact(logits.begin(), logits.end()),
      slope(gradient.begin(), gradient.end());
  std::vector<T> soft, got(size);
  std::vector<double> want(size);
  const auto compare = [&](const char* what, double tolerance, double unit) {
    for (std::int64_t i = 0; i < size; ++i)
      expect(std::isnan(want[i])
                 ? std::isnan(got[i])
                 : std::fabs(got[i] - want[i]) <= tolerance * (std::fabs(want[i]) + unit),
             what, K, got[i], want[i]);
  };
  const double tolerance = std::numeric_limits<T>::epsilon() * (100 + 200 / tau);
  for (int mode = 0; mode < 3; ++mode) {
    std::memset(got.data(), 0xff, size * sizeof(T));
    gumbel_dispatch(Gumbel<double>{exact.data(), seed.data(), mode == 2 ? slope.data() : nullptr,
                                   batch, K, seeds, tau, mode == 1, want.data(), 1});
    gumbel_cuda(GumbelCuda<T>{logits.data(), seed.data(), mode == 2 ? gradient.data() : nullptr,
                              batch, K, seeds, tau, mode == 1, got.data(), nullptr});
    if (mode == 0) compare("soft", tolerance, 1e-30), soft = got;
    if (mode == 1) compare("hard", 0, 0);
    if (mode == 2) compare("gradient", 2 * tolerance, 4 / tau);
  }
  std::memset(got.data(), 0xff, size * sizeof(T));
  gumbel_backward_cuda(
      GumbelBackwardCuda<T>{soft.data(), gradient.data(), batch, K, tau, got.data(), nullptr});
  compare("gradient from the sample", 2 * tolerance, 4 / tau);
}

template <class T>
void check_all() {
  check<T>(1, 1, 1, 1);
  check<T>(5, 3, 1, 0.5);
  check<T>(66, 10, 3, 1);
  check<T>(3, 27, 1, 2);
  check<T>(10, 33, 2, 1);
  check<T>(3, 301, 3, 1);
  check<T>(3, 1027, 1, 0.5);
}

}  // namespace

int main(int argc, char** argv) {
  stop_at_first = cuda_shim::set_fault(argc, argv);
  using cuda_shim::Order;
  try {
    for (Order order : {Order::forward, Order::reverse, Order::shuffled}) {
      cuda_shim::set_order(order, 1);
      check_all<float>();
      check_all<double>();
    }
  } catch (const cuda_shim::Error& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
