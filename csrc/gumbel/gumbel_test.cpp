// gumbel_cpu at every SIMD level this machine runs, against long double.
#include "gumbel/gumbel.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

// Philox4x32-10, as in the paper.
void philox(std::uint64_t counter, std::uint64_t seed, std::uint32_t (&word)[4]) {
  std::uint32_t c[4] = {std::uint32_t(counter), std::uint32_t(counter >> 32), 0, 0};
  std::uint32_t k0 = std::uint32_t(seed), k1 = std::uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(c[0]) * 0xD2511F53u;
    const std::uint64_t p1 = std::uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = std::uint32_t(p1 >> 32) ^ c[1] ^ k0, c[1] = std::uint32_t(p1);
    c[2] = std::uint32_t(p0 >> 32) ^ c[3] ^ k1, c[3] = std::uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  std::copy(c, c + 4, word);
}

long double noise(std::uint64_t element, std::uint64_t seed) {
  std::uint32_t word[4];
  philox(element / 4, seed, word);
  const long double u = (word[element % 4] + 0.5L) * 0x1p-32L;
  return -std::log(-std::log1p(-u));
}

void expect(bool good, const char* what, long double got, long double want) {
  if (good) return;
  std::printf("FAILED %s: %.17Lg for %.17Lg\n", what, got, want);
  ++failures;
}

// With `rows` each row has a temperature of its own: tau, tau + 1/4, tau + 1/2 and again.
template <class T>
void check(std::int64_t batch, std::int64_t K, std::int64_t seeds, double tau, bool rows,
           int threads) {
  std::mt19937_64 random(batch * 1000 + K);
  std::normal_distribution<double> normal;
  // On the heap, of the exact size, so that AddressSanitizer sees the ends.
  std::vector<T> logits(batch * K), gradient(batch * K), soft(batch * K, T(-1)),
      hard = soft, both = soft, beside = soft, from = soft;
  for (T& l : logits) l = T(3 * normal(random));
  for (T& g : gradient) g = T(normal(random));
  std::vector<std::int64_t> seed(seeds);
  for (std::int64_t& s : seed) s = std::int64_t(random());
  std::vector<T> taus(batch);
  for (std::int64_t b = 0; b < batch; ++b) taus[b] = T(tau + (rows ? 0.25 * double(b % 3) : 0));
  const Tau<T> temperature{tau, rows ? taus.data() : nullptr, 1};

  const auto sample = [&](T* soft, T* one_hot) {
    gumbel_cpu(Gumbel<T>{logits.data(), seed.data(), batch, K, seeds, temperature, soft, one_hot,
                         threads});
  };
  sample(soft.data(), nullptr);
  sample(nullptr, hard.data());
  sample(both.data(), beside.data());
  gumbel_backward_cpu(
      GumbelBackward<T>{soft.data(), gradient.data(), batch, K, temperature, from.data(), threads});

  const long double eps = std::numeric_limits<T>::epsilon();
  std::vector<long double> z(K), y(K);
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t share = batch / seeds;
    const long double t = taus[b];
    const T *l = &logits[b * K], *g = &gradient[b * K];
    long double most = -INFINITY, size = 0, sum = 0, dot = 0;
    std::int64_t best = 0;
    for (std::int64_t k = 0; k < K; ++k) {
      z[k] = l[k] + noise(std::uint64_t((b % share) * K + k), std::uint64_t(seed[b / share]));
      if (z[k] > most) most = z[k], best = k;
      size = std::max(size, std::fabs(z[k]));
    }
    for (std::int64_t k = 0; k < K; ++k) sum += y[k] = std::exp((z[k] - most) / t);
    for (std::int64_t k = 0; k < K; ++k) dot += (y[k] /= sum) * g[k];
    // Rounding of z, divided by tau, and of the argument of the exponential, that is up to 100.
    const long double tolerance = eps * (2 * size / t + 12);
    for (std::int64_t k = 0; k < K; ++k) {
      const std::int64_t at = b * K + k;
      const bool seen = y[k] > 4 * std::numeric_limits<T>::min();
      expect(!seen || std::fabs(soft[at] - y[k]) <= tolerance * y[k], "soft", soft[at], y[k]);
      expect(!seen || std::fabs(both[at] - y[k]) <= tolerance * y[k], "both", both[at], y[k]);
      expect(hard[at] == T(k == best), "hard", hard[at], k == best);
      expect(beside[at] == hard[at], "one-hot beside soft", beside[at], hard[at]);
      const long double slope = y[k] * (g[k] - dot) / t;
      const long double scale = y[k] * (std::fabs(g[k]) + 4) / t;
      expect(std::fabs(from[at] - slope) <= 4 * tolerance * scale, "from the sample", from[at],
             slope);
    }
  }
}

// A tau in memory: one for all rows is the same number to the bit, and what is no temperature makes
// its row NaN, and no other.
template <class T>
void check_tau_in_memory(std::int64_t K) {
  const std::int64_t batch = 19, seed = 3;
  const T taus[] = {T(0.7), 0, T(-1), std::numeric_limits<T>::quiet_NaN()};
  std::vector<T> logits(batch * K), gradient(batch * K, T(1)), each(batch);
  for (std::int64_t i = 0; i < batch * K; ++i) logits[i] = T(i % 7), gradient[i] = T(i % 5);
  for (std::int64_t b = 0; b < batch; ++b) each[b] = taus[b % 4];
  // Soft, one-hot, one-hot beside soft, gradient.
  const auto all = [&](Tau<T> tau) {
    std::vector<T> out(4 * batch * K, T(-1));
    T* part[] = {&out[0], &out[batch * K], &out[2 * batch * K], &out[3 * batch * K]};
    Gumbel<T> a{logits.data(), &seed, batch, K, 1, tau, nullptr, part[1], 1};
    gumbel_cpu(a);
    a.soft = part[0], a.one_hot = part[2];
    gumbel_cpu(a);
    const std::vector<T> sample(batch * K, T(1) / T(K));
    gumbel_backward_cpu(
        GumbelBackward<T>{sample.data(), gradient.data(), batch, K, tau, part[3], 1});
    return out;
  };
  const std::vector<T> want = all({double(taus[0]), nullptr, 0}), same = all({0, taus, 0}),
                       rows = all({0, each.data(), 1});
  for (std::size_t i = 0; i < want.size(); ++i) {
    const std::int64_t b = std::int64_t(i) / K % batch;
    expect(same[i] == want[i], "one tau in memory", same[i], want[i]);
    if (b % 4 == 0)
      expect(rows[i] == want[i], "tau of a row", rows[i], want[i]);
    else
      expect(std::isnan(rows[i]), "no temperature", rows[i], NAN);
  }
}

// With one other category that cannot win, log(y0 / y1) at tau 1 is the noise of two elements.
template <class T>
void check_noise() {
  const std::int64_t K = 2, batch = 100000;
  const std::vector<T> logits(batch * K, T(0));
  std::vector<T> y(batch * K);
  const std::int64_t seed = 12345;
  for (double tau : {1.0, 1.5}) {
    gumbel_cpu(
        Gumbel<T>{logits.data(), &seed, batch, K, 1, {tau, nullptr, 0}, y.data(), nullptr, 1});
    const long double eps = std::numeric_limits<T>::epsilon();
    for (std::int64_t b = 0; b < batch; ++b) {
      const long double difference =
          noise(std::uint64_t(2 * b), seed) - noise(std::uint64_t(2 * b + 1), seed);
      const long double want = std::exp(difference / tau);
      const long double got = (long double)y[2 * b] / y[2 * b + 1];
      // At tau 1 the noise is divided as it is, to an ulp or two each.
      const long double tolerance = eps * (tau == 1 ? 10 : 12 + 2 * std::fabs(difference));
      expect(std::fabs(got - want) <= tolerance * want, "noise", got, want);
    }
  }
}

template <class T>
void check_all() {
  check_noise<T>();
  for (std::int64_t K : {3, 10, 33, 2049}) check_tau_in_memory<T>(K);
  for (double tau : {1.0, 0.5, 7.0})
    for (bool rows : {false, true}) {
      check<T>(1, 1, 1, tau, rows, 1);
      check<T>(5, 3, 1, tau, rows, 1);
      check<T>(6, 10, 3, tau, rows, 2);
      check<T>(70, 17, 1, tau, rows, 1);
      check<T>(700, 33, 2, tau, rows, 3);
      check<T>(3, 2047, 1, tau, rows, 1);
      check<T>(2, 2049, 2, tau, rows, 1);
      check<T>(1, 5001, 1, tau, rows, 1);
      // Long enough for several threads to share a row.
      if (!rows) check<T>(1, 130001, 1, tau, rows, 3);
    }
  check<T>(2, 130001, 1, 0.5, true, 3);
}

}  // namespace

int main() {
  for (const std::string& name : runnable_levels()) {
    set_level(name);
    check_all<float>();
    check_all<double>();
    std::printf("%s: %d failures so far\n", name.c_str(), failures);
  }
  return failures != 0;
}
