// A tile of 64 x 64 kernel values meets all labellings while it is in cache, so a pair is visited a
// single time and no kernel matrix exists.
//
// A product with two-valued labels needs no multiplications: the sum of k_ij u_j over a few columns
// j has as many values as those columns have labellings, 16 for four of them, and a vector register
// holds 16. One permutation of a register by the label bits of 16 labellings is thus worth four
// multiply-adds. Per labelling that leaves a sum over the rows, weighted by their labels.
//
// Sums of float32 over a tile are rounded by chance where labels are drawn by chance. The first
// labelling is the one that others are compared to, and whole tiles of one label are its rule: it
// is summed up in float64.

#include "permutation/permutation.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#if defined(__clang__) && defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/team.h"
#include "common/tiles.h"
#include "mmd/mmd_math.h"

namespace vimae::VIMAE_SIMD {
namespace {

template <class T>
constexpr int kBits = 0;  // labels that choose one lane of a vector
template <>
constexpr int kBits<float> = VIMAE_SIMD_BYTES == 64   ? 4
                             : VIMAE_SIMD_BYTES == 32 ? 3
                                                      : 2;
template <>
constexpr int kBits<double> = kBits<float> - 1;

// As many label words as a vector of T has lanes, each in an unsigned integer of the size of T.
template <class T>
struct Words;
template <>
struct Words<float> {
  typedef std::uint32_t Vec __attribute__((vector_size(VIMAE_SIMD_BYTES)));
};
template <>
struct Words<double> {
  typedef std::uint64_t Vec __attribute__((vector_size(VIMAE_SIMD_BYTES)));
};
template <class T>
using WordVec = typename Words<T>::Vec;

template <class T>
VIMAE_INLINE WordVec<T> load_words(const std::uint32_t* p) {
  typedef std::uint32_t Packed __attribute__((vector_size(4 * kLanes<T>)));
  Packed packed;
  std::memcpy(&packed, p, sizeof packed);
  return __builtin_convertvector(packed, WordVec<T>);
}

// Lane l of the result is the lane of `table` that the lowest bits of code l tell. GCC knows this
// for all vectors; for Clang the widest are named.
template <class T>
VIMAE_INLINE Vec<T> choose(Vec<T> table, WordVec<T> code) {
#if !defined(__clang__)
  return __builtin_shuffle(table, code);
#else
#if VIMAE_SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm512_permutexvar_ps((__m512i)code, (__m512)table);
  else
    return (Vec<T>)_mm512_permutexvar_pd((__m512i)code, (__m512d)table);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return (Vec<T>)_mm256_permutevar8x32_ps((__m256)table, (__m256i)code);
#endif
  Vec<T> out = {};
  for (int l = 0; l < kLanes<T>; ++l) out[l] = table[code[l] & (kLanes<T> - 1)];
  return out;
#endif
}

// A block of kRows rows and kGroups groups of columns has its tables in registers while it meets
// all labellings.
constexpr int kRows = 4, kGroups = VIMAE_SIMD_BYTES == 64 ? 4 : 2, kWord = 32;

template <class T, Family F>
struct Problem {
  static constexpr int V = kLanes<T>;
  static constexpr int kGroupsOfWord = (kWord + kBits<T> - 1) / kBits<T>;
  const Permutation<T>& a;
  const Weights w;
  std::int64_t panels;
  T* panel;         // [panels][d][P]
  Scale<T>* scale;  // [n_scales]
  double* sums;  // [team][columns + 1]: of k_ij u_i u_j by labelling, and of k_ij, over pairs i < j
  T* tile;       // [P][P]: squared distances, then k_ij - centre, 0 where there is no pair
  T* part;       // [columns]: the sums of one tile

  Problem(const Permutation<T>& a, int team, Arena& shared, Arena& own)
      : a(a), w(weights(a.n, a.N - a.n)), panels((a.N + P - 1) / P) {
    panel = shared.take<T>(panels * a.d * P);
    scale = shared.take<Scale<T>>(a.n_scales);
    sums = shared.take<double>(team * (a.columns + 1));
    tile = own.take<T>(P * P);
    part = own.take<T>(a.columns);
  }

  void solve(std::int64_t b, Team team) {
    const T* x = a.x + b * a.N * a.d;
    double* mine = sums + team.rank * (a.columns + 1);
    std::fill_n(mine, a.columns + 1, 0.0);
    if (team.rank == 0)
      for (int i = 0; i < a.n_scales; ++i) scale[i] = scale_of<T>(F, a.scales[i], 1);
    for (std::int64_t q = team.rank; q < panels; q += team.size)
      mine[a.columns] += pack_panel(x + q * P * a.d, std::min<std::int64_t>(P, a.N - q * P), a.d,
                                    panel + q * a.d * P);
    team.wait();
    const std::uint32_t* labels = a.labels + b * a.labels_batch_stride;
    // Tiles are dealt out in turn, so that threads have the same number of them.
    const std::int64_t step = a.parts * team.size;
    std::int64_t next = a.part + a.parts * team.rank;
    for (std::int64_t p = 0, first = 0; p < panels; first += panels - p, ++p)
      for (; next < first + panels - p; next += step) {
        const std::int64_t q = p + next - first;
        if (team.stopped(double(P * P * (a.d + a.columns / 4)))) continue;
        mine[a.columns] += fill(p, q, a.centre[b]);
        sum_labellings(labels, p, q, mine);
      }
    team.wait();
    for (std::int64_t c = team.rank; c < a.columns; c += team.size) {
      double form = 0, total = 0;
      for (int t = 0; t < team.size; ++t) {
        form += sums[t * (a.columns + 1) + c];
        total += sums[t * (a.columns + 1) + a.columns];
      }
      a.values[b * a.columns + c] = 2 * (w.quadratic * form + w.total * total);
    }
    team.wait();
  }

  // k - 1 of one scale, to the rounding of itself.
  static VIMAE_INLINE Vec<T> less_one(Vec<T> s, T c) {
    if constexpr (F == Family::rbf) {
      return expm1_of_product<T>(s, c);
    } else {
      const Vec<T> most = splat(std::numeric_limits<T>::max() / 4);
      s = s > most ? most : s;
      return -s * VectorOps<T>::reciprocal(s + c);
    }
  }

  // k - centre of the pairs of two panels into the tile; returns their sum.
  double fill(std::int64_t p, std::int64_t q, T centre) const {
    const std::int64_t rows = std::min<std::int64_t>(P, a.N - p * P),
                       columns = std::min<std::int64_t>(P, a.N - q * P);
    for (std::int64_t k = 0; k < a.d; k += KC) {
      const T *x = panel + (p * a.d + k) * P, *y = panel + (q * a.d + k) * P;
      const int kc = int(std::min<std::int64_t>(KC, a.d - k));
      each_tile<T>(rows, columns, false, [&](int i, int j, auto vectors) VIMAE_LAMBDA {
        distances<T, vectors.n, false>(x + i, y + j, x, y, kc, k == 0, tile + i * P + j, nullptr);
      });
    }
    Vec<double> total = {};
    for (int i = 0; i < P; ++i)
      for (int j = 0; j < P; j += V) {
        Vec<T> value = {}, none = {};
        if (i < rows && j < columns) {
          const Vec<T> s = load(tile + i * P + j), column = lane_numbers<T>() + T(j);
          for (int l = 0; l < a.n_scales; ++l)
            if (centre < 0)
              value += less_one(s, scale[l].c);
            else
              add_scale<VectorOps<T>, F, false, false>(s, scale[l], value, none, none);
          const auto pair = (column < splat(T(columns))) & (column > splat(T(p == q ? i : -1)));
          value = pair ? value - centre : none;
        }
        store(tile + i * P + j, value);
        total += widen(value);
      }
    return sum(total);
  }

  // Adds sum_ij k_ij u_i u_j over the tile to the sums of all labellings.
  void sum_labellings(const std::uint32_t* labels, std::int64_t p, std::int64_t q,
                      double* to) const {
    std::fill_n(part, a.columns, T(0));
    for (int half = 0; half < P / kWord; ++half) {
      if (q * P + half * kWord >= a.N) break;
      const std::uint32_t* columns = labels + (q * (P / kWord) + half) * a.columns;
      for (int i = 0; i < P && p * P + i < a.N; i += kRows) {
        const std::uint32_t* rows = labels + (p * P + i) / kWord * a.columns;
        for (int g = 0; g < kGroupsOfWord; g += kGroups)
          block(tile + i * P + half * kWord, columns, rows, i % kWord, g);
      }
    }
    for (std::int64_t c = 0; c < a.columns; c += V) {
      // Sums leave a tile in float64.
      for (int l = 0; l < V; ++l) to[c + l] += double(part[c + l]);
    }
    if (sizeof(T) == 4) to[0] += of_first(labels, p, q) - double(part[0]);
  }

  // That sum for the first labelling, in float64.
  double of_first(const std::uint32_t* labels, std::int64_t p, std::int64_t q) const {
    const auto label = [&](std::int64_t i) {
      return i < a.N && labels[i / kWord * a.columns] >> (i % kWord) & 1;
    };
    double y[2][P] = {};  // sums over the rows, by their labels
    for (int i = 0; i < P && p * P + i < a.N; ++i)
      for (int j = 0; j < P; j += V) add_wide(y[label(p * P + i)] + j, load(tile + i * P + j));
    // u as the others have it.
    const double first = double(T(w.first)), second = double(T(w.second));
    double total = 0;
    for (int j = 0; j < P; ++j)
      total += (label(q * P + j) ? first : second) * (first * y[1][j] + second * y[0][j]);
    return total;
  }

  // The share of kRows rows and of kGroups groups of columns, from group g of a word on.
  void block(const T* k, const std::uint32_t* columns, const std::uint32_t* rows, int row,
             int g) const {
    // u of a group's columns by the labels that a lane stands for.
    Vec<T> u[kBits<T>] = {};
    for (int bit = 0; bit < kBits<T>; ++bit)
      for (int l = 0; l < V; ++l) u[bit][l] = T(l >> bit & 1 ? w.first : w.second);
    // Their sums with k; beyond the word's end 0, so that any code will do there.
    Vec<T> table[kRows][kGroups];
    int shift[kGroups];
    for (int h = 0; h < kGroups; ++h) {
      const int first = (g + h) * kBits<T>;
      shift[h] = std::min(first, kWord - 1);
      for (int r = 0; r < kRows; ++r) {
        Vec<T> total = {};
        for (int bit = 0; bit < kBits<T> && first + bit < kWord; ++bit)
          total += u[bit] * splat(k[r * P + first + bit]);
        table[r][h] = total;
      }
    }
    const Vec<T> one = splat(T(w.first)), zero = splat(T(w.second));
    const std::int64_t count = a.columns;
    T* const to = part;
    for (std::int64_t c = 0; c < count; c += V) {
      const WordVec<T> code = load_words<T>(columns + c), label = load_words<T>(rows + c) >> row;
      Vec<T> total = load(to + c), y[kRows] = {};
#pragma GCC unroll 4
      for (int h = 0; h < kGroups; ++h) {
        const WordVec<T> shifted = code >> shift[h];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
          y[r] = h ? y[r] + choose<T>(table[r][h], shifted) : choose<T>(table[r][h], shifted);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) total += y[r] * ((label & (1u << r)) != 0 ? one : zero);
      store(to + c, total);
    }
  }
};

// Labels by the column: each is drawn by one thread from its own seed.
struct DrawProblem {
  const Draw& a;
  std::int64_t words;
  std::uint32_t *order, *labels;  // [N], [words]: the thread's own

  DrawProblem(const Draw& a, int, Arena&, Arena& own) : a(a), words((a.N + 31) / 32) {
    order = own.take<std::uint32_t>(a.N);
    labels = own.take<std::uint32_t>(words);
  }

  void solve(std::int64_t b, Team team) {
    std::uint32_t* to = a.labels + b * words * a.columns;
    const std::int64_t begin = a.columns * team.rank / team.size,
                       end = a.columns * (team.rank + 1) / team.size;
    for (std::int64_t c = begin; c < end && !team.stopped(8 * double(a.N)); ++c) {
      std::fill_n(labels, words, 0u);
      if (c <= a.permutations) {
        for (std::int64_t i = 0; i < a.N; ++i) order[i] = std::uint32_t(i);
        // The first n places of a random order (Fisher and Yates).
        std::uint64_t state = c ? std::uint64_t(a.seeds[b * a.permutations + c - 1]) : 0;
        for (std::int64_t i = 0; i < a.n; ++i) {
          if (c) std::swap(order[i], order[i + below(a.N - i, state)]);
          labels[order[i] / 32] |= 1u << (order[i] % 32);
        }
      }
      for (std::int64_t w = 0; w < words; ++w) to[w * a.columns + c] = labels[w];
    }
    team.wait();
  }

  // A number in 0 ... bound - 1 from the next of SplitMix64 (Steele et al. 2014); no number is
  // likelier than another by more than bound / 2^64.
  static std::int64_t below(std::int64_t bound, std::uint64_t& state) {
    std::uint64_t x = state += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    x ^= x >> 31;
    __extension__ typedef unsigned __int128 Wide;
    return std::int64_t(Wide(x) * std::uint64_t(bound) >> 64);
  }
};

template <class T, Family F>
void run(const Permutation<T>& a) {
  const double pairs = 0.5 * double(a.N) * double(a.N) / double(a.parts);
  solve_batch<Problem<T, F>>(
      a, double(a.batch) * pairs * (double(a.d + 8 * a.n_scales) + double(a.columns) / 4));
}

template <class T>
void choose_family(const Permutation<T>& a) {
  a.family == Family::imq ? run<T, Family::imq>(a) : run<T, Family::rbf>(a);
}

}  // namespace

void permutation_cpu(const Permutation<float>& a) { choose_family(a); }
void permutation_cpu(const Permutation<double>& a) { choose_family(a); }
void draw_cpu(const Draw& a) {
  solve_batch<DrawProblem>(a, double(a.batch) * double(a.columns) * double(a.N) * 8);
}

}  // namespace vimae::VIMAE_SIMD
