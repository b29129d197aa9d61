// Which instruction set runs: every *_cpu.cpp is compiled once per level, into the namespace of its
// name.
#pragma once

#include <string>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#define VIMAE_EACH_LEVEL(DO) DO(baseline) DO(avx2) DO(avx512)
#else
#define VIMAE_EACH_LEVEL(DO) DO(baseline)
#endif

namespace vimae {

enum class Level {
#define VIMAE_ENUMERATE(level) level,
  VIMAE_EACH_LEVEL(VIMAE_ENUMERATE)
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

// Declares FUNCTION, of this SIGNATURE, in every level.
#define VIMAE_DECLARE_IN(level, DECLARATION) \
  namespace level {                          \
  DECLARATION                                \
  }

// Calls the function of this name in the namespace of the level in use.
#define VIMAE_CASE(level)   \
  case vimae::Level::level: \
    return vimae::level::VIMAE_CALL;
#define VIMAE_DISPATCH \
  switch (vimae::level()) { VIMAE_EACH_LEVEL(VIMAE_CASE) }
