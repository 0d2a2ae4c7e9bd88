// The element-wise kernels of a transformer block for the CPU, behind a C interface that library.py calls: what the
// Triton kernels of the same names do on a GPU, each tensor read and written once. Formulas: the reference.py beside
// each operator.

#include <cstdint>
#include <cstring>

namespace {

struct BFloat16 {
  uint16_t bits;
};

enum Dtype : int32_t { kFloat32, kBFloat16 };

// Fields as the Structures of library.py have them. Rows of width values, contiguous.
struct GeluBias {
  const void *x, *grad_y;
  const float* bias;
  void *y, *grad_x;
  float* sums;  // [blocks, width]
  int64_t rows, width;
  Dtype dtype;
  int32_t level, threads;
};

struct AddNorm {
  const void *x, *branch, *grad_total, *grad_y;
  const float *weight, *shift, *bias, *gamma, *drop_path;
  const int32_t* slot;
  void *total, *y, *grad_x, *grad_branch;
  float *mean, *rstd, *sums;  // [rows], [rows], [blocks, 4, width]
  int64_t rows, tokens, width;
  float eps;
  Dtype dtype, branch_dtype;  // of x, total and their gradients; of branch, y and theirs
  int32_t level, threads;
};

constexpr int64_t kBlockRows = 64;
constexpr int64_t kMaxNormWidth = 2048;

inline int64_t block_count(int64_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

inline int64_t block_end(int64_t block, int64_t rows) {
  int64_t end = (block + 1) * kBlockRows;
  return end < rows ? end : rows;
}

struct Level {
  const char* name;
  void (*gelu)(const GeluBias&, bool backward);
  void (*add_norm)(const AddNorm&, bool backward);
};

namespace portable {
#include "loops.h"
constexpr Level kLevel = {"portable", run_gelu, run_add_norm};
}  // namespace portable

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "loops.h"
constexpr Level kLevel = {"avx2", run_gelu, run_add_norm};
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include "loops.h"
constexpr Level kLevel = {"avx512", run_gelu, run_add_norm};
}  // namespace avx512
#pragma GCC pop_options
#endif

// What this processor has, slowest first.
struct Levels {
  const Level* known[3];
  int count = 0;

  Levels() {
    known[count++] = &portable::kLevel;
#if defined(__x86_64__) && !defined(__clang__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return;
    known[count++] = &avx2::kLevel;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      known[count++] = &avx512::kLevel;
#endif
  }
};

const Levels& levels() {
  static const Levels found;
  return found;
}

}  // namespace

extern "C" {

int deit_fast_cpu_level_count() { return levels().count; }

const char* deit_fast_cpu_level_name(int level) { return levels().known[level]->name; }

int64_t deit_fast_cpu_blocks(int64_t rows) { return block_count(rows); }

int64_t deit_fast_cpu_gelu_bias_bytes() { return sizeof(GeluBias); }

int64_t deit_fast_cpu_add_norm_bytes() { return sizeof(AddNorm); }

int deit_fast_cpu_gelu_bias(const GeluBias* task, int backward) {
  levels().known[task->level]->gelu(*task, backward != 0);
  return 1;
}

int deit_fast_cpu_add_norm(const AddNorm* task, int backward) {
  levels().known[task->level]->add_norm(*task, backward != 0);
  return 1;
}

}  // extern "C"
