#include "isa/kernels.hpp"

#include "csrkern/isa.hpp"

namespace csrkern {
namespace {

const Kernels& kernels_of(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::avx512:
      return kAvx512;
    case Isa::avx2:
      return kAvx2;
#elif defined(__aarch64__)
    case Isa::neon:
      return kNeon;
#endif
    default:
      return kPortable;
  }
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = kernels_of(isa());
  return chosen;
}

}  // namespace csrkern
