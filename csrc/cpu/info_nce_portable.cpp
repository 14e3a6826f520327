#include "info_nce_impl.hpp"
#include "simd_portable.hpp"

namespace csrkern {

const InfoNceKernels kInfoNceKernelsPortable = {sum_scores<Portable>, to_gradient<Portable>};

}  // namespace csrkern
