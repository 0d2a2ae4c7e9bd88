#include "kernels.h"

#include <cstring>

namespace deit_fast {

namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

namespace {

struct Levels {
  const Kernels* known[3];
  int count = 0;

  Levels() {
    known[count++] = &portable::kKernels;
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    if (has_avx2) known[count++] = &avx2::kKernels;
    // Ice Lake, Zen 4 and later
    if (has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
      known[count++] = &avx512::kKernels;
#endif
  }
};

const Levels& levels() {
  static const Levels found;
  return found;
}

}  // namespace

int level_count() { return levels().count; }

const Kernels* level(int index) { return levels().known[index]; }

const Kernels* find_level(const char* name) {
  if (std::strcmp(name, "auto") == 0) return level(level_count() - 1);
  for (int i = 0; i < level_count(); i++)
    if (std::strcmp(level(i)->name, name) == 0) return level(i);
  return nullptr;
}

}  // namespace deit_fast
