#include "generic/encode.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {

const EncodeKernels kEncodeAvx2 = {EncodeOf<Avx2>::linear_exact, EncodeOf<Avx2>::round_rows,
                                   EncodeOf<Avx2>::refine};

}  // namespace csrkern
