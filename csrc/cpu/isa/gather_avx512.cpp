#include "generic/gather.hpp"
#include "isa/simd_avx512.hpp"

namespace csrkern {

const GatherKernels kGatherAvx512 = {GatherOf<Avx512>::gather_sum, GatherOf<Avx512>::gather_dot,
                                     GatherOf<Avx512>::scatter_sum};

}  // namespace csrkern
