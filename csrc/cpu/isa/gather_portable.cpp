#include "generic/gather.hpp"
#include "isa/simd_portable.hpp"

namespace csrkern {

const GatherKernels kGatherPortable = {GatherOf<Portable>::gather_sum,
                                       GatherOf<Portable>::gather_dot,
                                       GatherOf<Portable>::scatter_sum};

}  // namespace csrkern
