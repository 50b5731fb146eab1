// Which vector instructions the CPU kernels use: one choice for all of them.
#pragma once

namespace speechft::cpu {

enum class InstructionSet { baseline, avx2, avx512 };

// The widest that this processor and build can run, unless told otherwise.
InstructionSet instruction_set();

// "avx512", "avx2" or "baseline".
const char* instruction_set_name();

// Use one set (empty: choose again). Returns false if it cannot run here.
bool set_instruction_set(const char* name);

}  // namespace speechft::cpu
