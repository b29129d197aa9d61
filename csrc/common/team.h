// Threads and their memory: how every kernel on the CPU divides a batch of problems.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include "common/interrupt.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace vimae::VIMAE_SIMD {
namespace {

// Uninitialised memory on a cache line.
struct Block {
  char* start;
  explicit Block(std::size_t size)
      : start(static_cast<char*>(::operator new(size, std::align_val_t(64)))) {}
  ~Block() { ::operator delete(start, std::align_val_t(64)); }
  Block(const Block&) = delete;
};

// Memory by the piece, out of one block whose size was measured by handing out the same pieces of
// nothing.
struct Arena {
  char* base;
  std::size_t used = 0;
  template <class E>
  E* take(std::int64_t count) {
    E* piece = base ? reinterpret_cast<E*>(base + used) : nullptr;
    used += (std::size_t(count) * sizeof(E) + 63) / 64 * 64;
    return piece;
  }
};

// Coordinates of pairs, or what takes as long, between two questions whether to give up: some
// hundred microseconds.
constexpr double kPatience = 1e6;

// The threads that solve one problem together.
struct Team {
  int rank, size;
  bool* given_up;    // of the whole call
  double* patience;  // what is left of the calling thread's; null for the other threads

  // Whether the call was given up, asked before every `work`. Then nothing has to be computed any
  // more, but barriers must still be passed by all.
  bool stopped(double work) const {
    if (patience && (*patience -= work) < 0) {
      *patience = kPatience;
      if (interrupted()) __atomic_store_n(given_up, true, __ATOMIC_RELAXED);
    }
    return __atomic_load_n(given_up, __ATOMIC_RELAXED);
  }
  void wait() const {
    if (size > 1) {
#ifdef _OPENMP
#pragma omp barrier
#endif
    }
  }
};

struct Group {
  std::int64_t begin, end;
};

// The g-th of `groups` parts of `count` things.
inline Group group(std::int64_t count, int g, int groups) {
  return {count * g / groups, count * (g + 1) / groups};
}

// Calls meet(row, columns begin, columns end, diagonal) so that every pair row <= column of panels
// is met once; where `diagonal`, the first column is the row itself. 2 x team groups of panels play
// a tournament (the circle method): in each round every group is one thread's own.
template <class Meet>
void each_pair_of_panels(std::int64_t panels, Team team, Meet meet) {
  const int groups = 2 * team.size, circle = groups - 1, t = team.rank;
  for (int round = 0; round < circle; ++round) {
    const Group rows = group(panels, t == 0 ? circle : (round + t) % circle, groups);
    const Group columns = group(panels, (round - t + circle) % circle, groups);
    for (std::int64_t q = rows.begin; q < rows.end; ++q) meet(q, columns.begin, columns.end, false);
    team.wait();
  }
  for (int g : {t, circle - t}) {
    const Group own = group(panels, g, groups);
    for (std::int64_t q = own.begin; q < own.end; ++q) meet(q, q, own.end, true);
  }
}

// Solves the problems 0 ... call.batch - 1 on at most call.threads threads: many problems with one
// thread each, few with all threads on each in turn. `work` is all there is to do, in coordinates
// of pairs or what takes as long.
//
// Problem(call, team size, shared, own) takes its memory from two arenas, the team's and the
// thread's, and solve(b, team) is run by every thread of the team; where it takes long, it asks
// whether the team has stopped. Throws Interrupted where the call was given up.
template <class Problem, class Call>
void solve_batch(const Call& call, double work) {
  // A thread is worth starting for some tens of microseconds of work: about half a million
  // coordinates.
  const int threads = int(std::clamp(work / 5e5, 1.0, double(std::max(1, call.threads))));
  const bool by_problem = call.batch >= threads;
  const int team = by_problem ? 1 : threads, teams = by_problem ? threads : 1;
  Arena shared{nullptr}, own{nullptr};
  Problem(call, team, shared, own);
  const Block memory(teams * shared.used + threads * own.used);
  const double each = work / double(std::max<std::int64_t>(1, call.batch));
  bool given_up = false;
  double patience = kPatience;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    // OpenMP may give fewer threads than were asked for: the work is cut for those that came.
    int rank = 0, came = 1;
#ifdef _OPENMP
    rank = omp_get_thread_num(), came = omp_get_num_threads();
#endif
    Arena of_team{memory.start + (by_problem ? rank * shared.used : 0)};
    Arena of_thread{memory.start + teams * shared.used + rank * own.used};
    Problem problem(call, by_problem ? 1 : came, of_team, of_thread);
    const Team alone{0, 1, &given_up, rank ? nullptr : &patience};
    const Team together{rank, came, &given_up, alone.patience};
    const std::int64_t end = call.batch * (rank + 1) / came;
    if (by_problem)
      for (std::int64_t b = call.batch * rank / came; b < end && !alone.stopped(each); ++b)
        problem.solve(b, alone);
    else
      for (std::int64_t b = 0; b < call.batch; ++b) problem.solve(b, together);
  }
  if (given_up) give_up();
}

}  // namespace
}  // namespace vimae::VIMAE_SIMD
