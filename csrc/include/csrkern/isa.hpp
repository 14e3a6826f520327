// Which instruction set the kernels run on, decided once per process.
#pragma once

namespace csrkern {

enum class Isa { portable, avx2, avx512 };

// The best instruction set of this processor, or a lower one if the environment variable
// CSRKERN_ISA names it. Throws std::runtime_error if that names an unknown one or one that
// this processor lacks.
Isa isa();

const char* isa_name(Isa isa);

// Whether this processor has instructions that multiply bfloat16 (AVX512-BF16 or AMX), which
// are 2 to 8 times as fast as float32 ones.
bool multiplies_bfloat16();

}  // namespace csrkern
