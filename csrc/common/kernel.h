// The kernels k(s) of s = ||x - y||^2, for scalars on the GPU and vectors of pairs on the CPU.
#pragma once

#include "common/host_device.h"

namespace vimae {

// With a scale c: c / (c + s) or exp(-s / c).
enum class Family { imq, rbf };

constexpr int kMaxScales = 32;  // of a CUDA kernel

// One scale of a sum of kernels, f its kernel: f is 1 / (1 + rate s) or exp(rate s), and its i-th
// derivative by s is f^(i + 1) or f times the constant of that name.
template <class T>
struct Term {
  T rate, first, second, third;
};

template <class T>
VIMAE_HOST_DEVICE Term<T> term_of(Family family, double c) {
  if (family == Family::imq) return {T(1 / c), T(-1 / c), T(2 / (c * c)), T(-6 / (c * c * c))};
  return {T(-1 / c), T(-1 / c), T(1 / (c * c)), T(-1 / (c * c * c))};
}

// Adds one scale's kernel and its first `Order` derivatives by s to k[0], ..., k[Order], V being T
// or a vector of T. Ops has V's reciprocal and exp_of_product. Powers of f are at most 1, whatever
// the unit of s.
template <class Ops, Family F, int Order, class T, class V>
VIMAE_HOST_DEVICE void add_term(V s, const Term<T>& term, V* k) {
  V f;
  if constexpr (F == Family::imq)
    f = Ops::reciprocal(s * term.rate + T(1));
  else
    f = Ops::exp_of_product(s, term.rate);
  const V step = f;
  k[0] += f;
  if constexpr (Order >= 1) {
    if constexpr (F == Family::imq) f *= step;
    k[1] += f * term.first;
  }
  if constexpr (Order >= 2) {
    if constexpr (F == Family::imq) f *= step;
    k[2] += f * term.second;
  }
  if constexpr (Order >= 3) {
    if constexpr (F == Family::imq) f *= step;
    k[3] += f * term.third;
  }
}

}  // namespace vimae
