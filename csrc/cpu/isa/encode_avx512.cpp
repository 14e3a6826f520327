#include "generic/encode.hpp"
#include "isa/simd_avx512.hpp"

namespace csrkern {

const EncodeKernels kEncodeAvx512 = {EncodeOf<Avx512>::linear_exact, EncodeOf<Avx512>::round_rows,
                                     EncodeOf<Avx512>::refine};

}  // namespace csrkern
