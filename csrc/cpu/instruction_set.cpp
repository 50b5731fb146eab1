#include "cpu/instruction_set.h"

#include <atomic>
#include <cstring>

namespace speechft::cpu {
namespace {

constexpr const char* NAMES[] = {"baseline", "avx2", "avx512"};

InstructionSet widest() {
#ifdef SPEECHFT_X86_VECTORS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return InstructionSet::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

std::atomic<InstructionSet>& chosen() {
  static std::atomic<InstructionSet> set{widest()};
  return set;
}

}  // namespace

InstructionSet instruction_set() { return chosen().load(); }

const char* instruction_set_name() { return NAMES[static_cast<int>(instruction_set())]; }

bool set_instruction_set(const char* name) {
  if (!*name) {
    chosen() = widest();
    return true;
  }
  for (int set = 0; set <= static_cast<int>(widest()); ++set)
    if (!std::strcmp(NAMES[set], name)) {
      chosen() = static_cast<InstructionSet>(set);
      return true;
    }
  return false;
}

}  // namespace speechft::cpu
