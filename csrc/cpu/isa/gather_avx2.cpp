#include "generic/gather.hpp"
#include "isa/simd_avx2.hpp"

namespace csrkern {

const GatherKernels kGatherAvx2 = {GatherOf<Avx2>::gather_sum, GatherOf<Avx2>::gather_dot,
                                   GatherOf<Avx2>::scatter_sum};

}  // namespace csrkern
