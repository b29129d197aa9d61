// Which instruction set runs: every *_cpu.cpp is compiled once per level, into the namespace of its
// name.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#define VIMAE_EACH_LEVEL(DO, ...) \
  DO(baseline, __VA_ARGS__) DO(avx2, __VA_ARGS__) DO(avx512, __VA_ARGS__)
#else
#define VIMAE_EACH_LEVEL(DO, ...) DO(baseline, __VA_ARGS__)
#endif

namespace vimae {

enum class Level {
#define VIMAE_ENUMERATE(LEVEL, _) LEVEL,
  VIMAE_EACH_LEVEL(VIMAE_ENUMERATE, )
#undef VIMAE_ENUMERATE
};

// The level in use: the best this processor has, unless set_level chose another.
Level level();
// Throws std::invalid_argument for a name that is unknown or that this processor cannot run.
void set_level(const std::string& name);
std::string level_name();
// Those this processor can run, slowest first.
std::vector<std::string> runnable_levels();

}  // namespace vimae

// VIMAE_CPU(mmd_cpu, MMD<float>) declares mmd_cpu(const MMD<float>&) in the namespace of every
// level, and defines it in namespace vimae, where it calls that of the level in use.
#define VIMAE_DECLARE(LEVEL, name, Call) \
  namespace LEVEL {                      \
  void name(const Call&);                \
  }
#define VIMAE_CASE(LEVEL, name) \
  case Level::LEVEL:            \
    return LEVEL::name(call);
#define VIMAE_CPU(name, Call)                               \
  VIMAE_EACH_LEVEL(VIMAE_DECLARE, name, Call)               \
  inline void name(const Call& call) {                      \
    switch (level()) { VIMAE_EACH_LEVEL(VIMAE_CASE, name) } \
  }
