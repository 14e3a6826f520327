// The instruction set of the kernels, chosen once per process.
#pragma once

namespace csrkern {

enum class Isa { portable, avx2, avx512, neon };

// Returns the best instruction set of this processor, or the one that the environment variable
// CSRKERN_ISA names. Throws std::runtime_error if this processor lacks that.
Isa isa();

const char* isa_name(Isa isa);

// Returns whether this processor can multiply bfloat16 (AVX512-BF16 or AMX), 2 to 8 times as fast
// as float32.
bool multiplies_bfloat16();

// Returns whether the kernels in use look bytes up in tables of 256 bytes in registers.
bool looks_up_bytes();

}  // namespace csrkern
