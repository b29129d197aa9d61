// The squared kernel Stein discrepancy: pairs of points, each met once for both its ends
// (common/symmetric.h); then what is linear in the number of points.

#include "ksd/ksd.h"

#include <stdexcept>

#include "common/symmetric.h"
#include "ksd/ksd_math.h"

namespace vimae::VIMAE_SIMD {
namespace {

enum class Want { value, dz, both };

template <bool Score, Want W>
struct Rule {
  static constexpr bool kScore = Score, kDots = Score, kNorms = !Score, kValue = true,
                        kForce = W != Want::value, kDrift = W == Want::both;
  static constexpr int kOrder = kForce ? 3 : 2;
  template <class T, class V>
  static VIMAE_INLINE void weigh(V s, V p, V q, const V* k, T d, V& value, V& force) {
    value = stein_kernel(s, p, q, k, d);
    if constexpr (kForce) force = Score ? stein_force(s, p, q, k, d) : normal_force(s, p, k, d);
  }
};

template <class T, bool Score, Want W>
struct Problem {
  const KSD<T>& a;
  Symmetric<T, Rule<Score, W>> pairs;

  Problem(const KSD<T>& a, int team, Arena& shared, Arena& own)
      : a(a), pairs(a.n, a.d, a.family, a.scales, a.n_scales, team, shared, own) {}

  void solve(std::int64_t b, Team team) {
    const std::int64_t first = b * a.n * a.d;
    const T *z = a.x + first, *score = Score ? a.score_x + first : nullptr;
    const auto total = pairs.meet(z, score, team);
    const double n = double(a.n), weight = 1 / (n * (a.unbiased ? n - 1 : n));
    // The pair of a point with itself, which was not met, is in the biased estimate: its k is
    // n_scales and its u = k ||score||^2 - 2 d k'.
    const double own = a.unbiased ? 0 : a.n_scales;
    if (W != Want::value)
      pairs.each_coordinate(team, [&](std::int64_t i, std::int64_t k, std::int64_t at) {
        const std::int64_t c = i * a.d + k;
        const double pull = pairs.force[at] + (Score ? 0 : (pairs.mass[i] + own) * double(z[c]));
        a.dx[first + c] = T(2 * weight * pull + total.finite);
        if (W == Want::both)
          a.dscore_x[first + c] =
              T(2 * weight * (pairs.drift[at] + own * double(score[c])) + total.finite);
      });
    if (team.rank == 0) {
      double diagonal = 0;
      for (int l = 0; !a.unbiased && l < a.n_scales; ++l) diagonal += 2 * n * a.d / a.scales[l];
      const T* s = Score ? score : z;
      for (std::int64_t c = 0; !a.unbiased && c < a.n * a.d; ++c)
        diagonal += own * double(s[c]) * double(s[c]);
      double value = weight * (2 * total.value + diagonal);
      // A squared norm, which rounding does not make negative; NaN stays NaN.
      if (!a.unbiased && value < 0) value = 0;
      a.value[b] = T(value + total.finite);
    }
    team.wait();
  }
};

template <class T, bool Score>
void run(const KSD<T>& a) {
  const double n = double(a.n), work = 0.5 * double(a.batch) * n * n * double(a.d + 8 * a.n_scales);
  if (a.dscore_x)
    solve_batch<Problem<T, Score, Score ? Want::both : Want::dz>>(a, work);
  else if (a.dx)
    solve_batch<Problem<T, Score, Want::dz>>(a, work);
  else
    solve_batch<Problem<T, Score, Want::value>>(a, work);
}

template <class T>
void choose(const KSD<T>& a) {
  if (a.pairs) throw std::invalid_argument("ksd_cpu has no code for means over pairs");
  a.score_x ? run<T, true>(a) : run<T, false>(a);
}

}  // namespace

void ksd_cpu(const KSD<float>& a) { choose(a); }
void ksd_cpu(const KSD<double>& a) { choose(a); }

}  // namespace vimae::VIMAE_SIMD
