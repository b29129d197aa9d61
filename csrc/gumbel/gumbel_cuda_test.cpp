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

void expect(bool good, const char* what, std::int64_t K, double got, double want) {
  if (good) return;
  std::printf("FAILED %s of %d: %.9g for %.9g\n", what, int(K), got, want);
  ++failures;
  if (stop_at_first) std::exit(1);
}

// With `rows` each row has a temperature of its own, and the last one none.
template <class T>
void check(std::int64_t batch, std::int64_t K, std::int64_t seeds, double tau, bool rows) {
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
  // The least numbers, which are no less than nothing.
  if (batch > 4)
    for (std::int64_t k = 0; k < K; ++k)
      logits[3 * K + k] = k ? std::numeric_limits<T>::lowest() : logits[1];
  std::vector<std::int64_t> seed(seeds);
  for (std::int64_t& s : seed) s = std::int64_t(random());

  std::vector<T> taus(batch);
  for (std::int64_t b = 0; b < batch; ++b) taus[b] = T(tau + 0.25 * double(b % 3));
  if (batch > 1) taus[batch - 1] = 0;
  const std::vector<double> exact(logits.begin(), logits.end()),
      slope(gradient.begin(), gradient.end()), exact_taus(taus.begin(), taus.end());
  const Tau<double> exact_tau{tau, rows ? exact_taus.data() : nullptr, 1};
  const Tau<T> its_tau{tau, rows ? taus.data() : nullptr, 1};
  std::vector<T> soft(size), one_hot(size), out(size);
  std::vector<double> want(size), hot(size), want_slope(size);
  const auto compare = [&](const char* what, const std::vector<T>& got,
                           const std::vector<double>& want, double tolerance, double unit) {
    for (std::int64_t i = 0; i < size; ++i)
      expect(std::isnan(want[i])
                 ? std::isnan(got[i])
                 : std::fabs(got[i] - want[i]) <= tolerance * (std::fabs(want[i]) + unit),
             what, K, got[i], want[i]);
  };
  gumbel_cpu(Gumbel<double>{exact.data(), seed.data(), batch, K, seeds, exact_tau, want.data(),
                            hot.data(), 1});
  const double tolerance = std::numeric_limits<T>::epsilon() * (100 + 200 / tau);
  for (int mode = 0; mode < 3; ++mode) {
    std::memset(soft.data(), 0xff, size * sizeof(T));
    std::memset(one_hot.data(), 0xff, size * sizeof(T));
    gumbel_cuda(Gumbel<T>{logits.data(), seed.data(), batch, K, seeds, its_tau,
                          mode == 0 ? nullptr : soft.data(), mode == 1 ? nullptr : one_hot.data()});
    if (mode != 0) compare("soft", soft, want, tolerance, 1e-30);
    if (mode != 1) compare("one-hot", one_hot, hot, 0, 0);
  }
  const std::vector<double> sample(soft.begin(), soft.end());
  gumbel_backward_cpu(GumbelBackward<double>{sample.data(), slope.data(), batch, K, exact_tau,
                                             want_slope.data(), 1});
  std::memset(out.data(), 0xff, size * sizeof(T));
  gumbel_backward_cuda(
      GumbelBackward<T>{soft.data(), gradient.data(), batch, K, its_tau, out.data()});
  compare("gradient", out, want_slope, tolerance, 4 / tau);
}

template <class T>
void check_all() {
  check<T>(1, 1, 1, 1, false);
  check<T>(5, 3, 1, 0.5, false);
  check<T>(5, 3, 1, 0.5, true);
  check<T>(66, 10, 3, 1, false);
  check<T>(3, 27, 1, 2, false);
  check<T>(10, 33, 2, 1, true);
  check<T>(3, 301, 3, 1, false);
  check<T>(3, 1027, 1, 0.5, false);
  check<T>(6, 1027, 1, 0.5, true);
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
