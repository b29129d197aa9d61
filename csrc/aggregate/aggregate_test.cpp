// aggregate_cpu, aggregate_gradient_cpu and total_correlation_cpu at every SIMD level this machine
// runs, against loops straight from the definition.
#include "aggregate/aggregate.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

using namespace vimae;

namespace {

int failures = 0;

using Real = long double;

struct Definition {
  std::vector<Real> joint, marginal, dz, dmean, dlog_var;
};

template <class T>
Real weight(const Aggregate<T>& a, std::int64_t i, std::int64_t j) {
  const Real N = Real(a.dataset_size), M = Real(a.B - 1);
  if (a.weighting == Weighting::uniform) return 1 / Real(a.B);
  if (a.weighting == Weighting::mws) return 1 / (Real(a.B) * N);
  return j == i ? 1 / N : j == (i + 1) % a.B ? (N - M) / (N * M) : 1 / M;
}

// log sum_j exp(l_j) and, as l, what each j has of the sum.
Real log_sum(std::vector<Real>& l) {
  Real peak = l[0], sum = 0;
  for (Real x : l) peak = std::fmax(peak, x);
  for (Real& x : l) sum += x = std::exp(x - peak);
  for (Real& x : l) x /= sum;
  return peak + std::log(sum);
}

// One problem, pair by pair, in nats.
template <class T>
Definition define(const Aggregate<T>& a, const T* z, const T* mean, const T* log_var,
                  const T* g_joint, const T* g_marginal) {
  const std::int64_t n = a.n, B = a.B, d = a.d;
  Definition out;
  out.joint.assign(n, 0), out.marginal.assign(n * d, 0), out.dz.assign(n * d, 0);
  out.dmean.assign(B * d, 0), out.dlog_var.assign(B * d, 0);
  for (std::int64_t i = 0; i < n; ++i) {
    std::vector<Real> all(B);
    std::vector<std::vector<Real>> one(d, std::vector<Real>(B));
    for (std::int64_t j = 0; j < B; ++j) {
      const Real log_weight = std::log(weight(a, i, j));
      all[j] = log_weight;
      for (std::int64_t k = 0; k < d; ++k) {
        const Real diff = Real(z[i * d + k]) - Real(mean[j * d + k]);
        const Real v = Real(log_var[j * d + k]);
        const Real l = -(std::log(2 * std::acos(Real(-1))) + v + diff * diff * std::exp(-v)) / 2;
        all[j] += l, one[k][j] = log_weight + l;
      }
    }
    out.joint[i] = log_sum(all);
    for (std::int64_t k = 0; k < d; ++k) {
      out.marginal[i * d + k] = log_sum(one[k]);
      for (std::int64_t j = 0; j < B; ++j) {
        const Real diff = Real(z[i * d + k]) - Real(mean[j * d + k]);
        const Real u = diff * std::exp(-Real(log_var[j * d + k]));
        const Real r = Real(g_joint[i]) * all[j] + Real(g_marginal[i * d + k]) * one[k][j];
        out.dz[i * d + k] -= r * u;
        out.dmean[j * d + k] += r * u;
        out.dlog_var[j * d + k] += r * (u * diff - 1) / 2;
      }
    }
  }
  return out;
}

// The error is relative to the largest number in `want` and `also`.
template <class T>
void close(const char* what, const std::vector<T>& got, std::size_t offset,
           const std::vector<Real>& want, double tolerance, const std::vector<Real>& also = {}) {
  double error = 0, size = 1e-30;
  for (Real x : also) size = std::fmax(size, double(std::fabs(x)));
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double e = double(std::fabs(Real(got[offset + i]) - want[i]));
    error = e > error || std::isnan(e) ? e : error;
    size = std::fmax(size, double(std::fabs(want[i])));
  }
  if (!(error <= tolerance * size)) {
    std::printf("FAILED %s: error %.3g of %.3g\n", what, error, size);
    ++failures;
  }
}

// The total correlation of a batch whose variances have the batch stride 0.
template <class T>
void check_total(const Aggregate<T>& a) {
  const std::int64_t n = a.n, B = a.B, d = a.d;
  const T nan = std::numeric_limits<T>::quiet_NaN(), share = T(1) / T(n);
  const std::vector<T> up(n, share), down(n * d, -share), none(n * d, T(0));
  std::vector<T> value(a.batch, nan), alone = value, dz(a.batch * n * d, nan);
  std::vector<T> dmean(a.batch * B * d, nan), dlog_var = dmean;
  TotalCorrelation<T> args{a.z,
                           a.mean,
                           a.log_var,
                           a.z_batch_stride,
                           a.mean_batch_stride,
                           a.log_var_batch_stride,
                           a.batch,
                           n,
                           B,
                           d,
                           a.weighting,
                           a.dataset_size,
                           value.data(),
                           dz.data(),
                           dmean.data(),
                           dlog_var.data(),
                           a.threads};
  total_correlation_cpu(args);
  args.value = alone.data(), args.dz = args.dmean = args.dlog_var = nullptr;
  total_correlation_cpu(args);
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (std::int64_t b = 0; b < a.batch; ++b) {
    const Definition want = define(a, a.z + b * a.z_batch_stride, a.mean + b * a.mean_batch_stride,
                                   a.log_var, up.data(), down.data());
    // Errors are relative to what the value and the gradients are differences of.
    const Definition part = define(a, a.z + b * a.z_batch_stride, a.mean + b * a.mean_batch_stride,
                                   a.log_var, up.data(), none.data());
    Real mean = 0, size = 0;
    for (Real l : want.joint) mean += l / Real(n), size += std::fabs(l) / Real(n);
    for (Real l : want.marginal) mean -= l / Real(n), size += std::fabs(l) / Real(n);
    if (!(std::fabs(Real(value[b]) - mean) <= 5 * eps * size) || alone[b] != value[b]) {
      std::printf("FAILED value: %.9g and %.9g, not %.9g\n", double(value[b]), double(alone[b]),
                  double(mean));
      ++failures;
    }
    close("dz", dz, b * n * d, want.dz, 500 * eps, part.dz);
    close("dmean", dmean, b * B * d, want.dmean, 500 * eps, part.dmean);
    close("dlog_var", dlog_var, b * B * d, want.dlog_var, 500 * eps, part.dlog_var);
  }
}

template <class T>
void check(std::int64_t batch, std::int64_t n, std::int64_t B, std::int64_t d, Weighting weighting,
           int threads, double shift) {
  std::mt19937_64 random(n * 1000 + d);
  std::normal_distribution<double> normal;
  auto draw = [&](std::int64_t count, double scale, double at) {
    std::vector<T> v(count);
    for (T& e : v) e = T(scale * normal(random) + at);
    return v;
  };
  // All problems of the batch share the variances: their batch stride is 0. In many dimensions the
  // posteriors lie close to each other, so that each of them counts.
  const double spread = d > 100 ? 0.05 : 1;
  const auto z = draw(batch * n * d, spread, shift + 0.1 * spread);
  const auto mean = draw(batch * B * d, spread, shift), log_var = draw(B * d, 0.4 * spread, -0.5);
  const auto g_joint = draw(batch * n, 1, 0), g_marginal = draw(batch * n * d, 1, 0);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<double> joint(batch * n, nan);
  std::vector<T> marginal(batch * n * d, nan), peak = marginal, total = marginal, dz = marginal;
  std::vector<T> dmean(batch * B * d, nan), dlog_var = dmean;
  const Aggregate<T> a{z.data(),
                       mean.data(),
                       log_var.data(),
                       n * d,
                       B * d,
                       0,
                       batch,
                       n,
                       B,
                       d,
                       weighting,
                       B + 10,
                       joint.data(),
                       marginal.data(),
                       peak.data(),
                       total.data(),
                       threads};
  aggregate_cpu(a);
  aggregate_gradient_cpu(AggregateGradient<T>{z.data(),
                                              mean.data(),
                                              log_var.data(),
                                              n * d,
                                              B * d,
                                              0,
                                              batch,
                                              n,
                                              B,
                                              d,
                                              weighting,
                                              B + 10,
                                              joint.data(),
                                              peak.data(),
                                              total.data(),
                                              g_joint.data(),
                                              g_marginal.data(),
                                              dz.data(),
                                              dmean.data(),
                                              dlog_var.data(),
                                              threads});
  const double eps = double(std::numeric_limits<T>::epsilon());
  for (std::int64_t b = 0; b < batch; ++b) {
    const Definition want = define(a, &z[b * n * d], &mean[b * B * d], log_var.data(),
                                   &g_joint[b * n], &g_marginal[b * n * d]);
    close("joint", joint, b * n, want.joint, 10 * eps);
    close("marginal", marginal, b * n * d, want.marginal, 10 * eps);
    close("dz", dz, b * n * d, want.dz, 500 * eps);
    close("dmean", dmean, b * B * d, want.dmean, 500 * eps);
    close("dlog_var", dlog_var, b * B * d, want.dlog_var, 500 * eps);
  }
  check_total(a);
}

// One sample in `every` so far from all posteriors that its densities underflow.
template <class T>
void check_far(std::int64_t n, std::int64_t every, Weighting weighting) {
  // In float32 a log density of more than some hundreds has few digits left for its gradient.
  const double away = sizeof(T) == 8 ? 40 : 8, narrow = sizeof(T) == 8 ? -6 : -2;
  const std::int64_t d = 3;
  std::mt19937_64 random(n);
  std::normal_distribution<double> normal;
  std::vector<T> z(n * d), mean(n * d), log_var(n * d);
  for (std::int64_t e = 0; e < n * d; ++e) {
    mean[e] = T(normal(random)), log_var[e] = T(narrow + 0.1 * normal(random));
    z[e] = T(double(mean[e]) + (e / d % every ? 0 : away) + 0.05 * normal(random));
  }
  check_total(Aggregate<T>{z.data(), mean.data(), log_var.data(), 0, 0, 0, 1, n, n, d, weighting,
                           2 * n, nullptr, nullptr, nullptr, nullptr, 1});
}

template <class T>
void check_all() {
  for (Weighting weighting : {Weighting::uniform, Weighting::mws, Weighting::mss}) {
    check<T>(1, 2, 2, 1, weighting, 1, 0);
    check<T>(1, 65, 65, 3, weighting, 1, 0);
    check<T>(2, 70, 70, 8, weighting, 2, 100);
    check<T>(1, 66, 66, 65, weighting, 2, 0);
    check<T>(1, 220, 220, 9, weighting, 3, 0);  // enough work for three threads
    check<T>(1, 34, 34, 200, weighting, 4, 0);
    check<T>(1, 300, 300, 3, weighting, 2, 0);  // several blocks of rows
    check_far<T>(50, 7, weighting);
    if (weighting == Weighting::mss) continue;
    check<T>(1, 1, 1, 1, weighting, 1, 0);
    check<T>(2, 3, 600, 5, weighting, 1, 0);
    check<T>(1, 129, 1, 10, weighting, 2, 0);
    check<T>(1, 21, 150, 64, weighting, 3, 0);
  }
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
