#include "isa/kernels.hpp"

#include "csrkern/isa.hpp"

namespace csrkern {

const Kernels& kernels() {
#ifdef CSRKERN_X86
  static const Kernels& chosen = isa() == Isa::avx512 ? kAvx512
                                 : isa() == Isa::avx2 ? kAvx2
                                                      : kPortable;
  return chosen;
#else
  return kPortable;
#endif
}

}  // namespace csrkern
