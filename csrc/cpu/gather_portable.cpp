#include "gather_impl.hpp"
#include "simd_portable.hpp"

namespace csrkern {

const GatherKernels kGatherPortable = {GatherOf<Portable>::gather_sum,
                                       GatherOf<Portable>::gather_dot,
                                       GatherOf<Portable>::scatter_sum};

}  // namespace csrkern
