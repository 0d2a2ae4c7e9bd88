// Attention of short rows for processors with AVX512-BF16 (Zen 4, Sapphire Rapids and later): packed qkv, one head at a
// time in the second cache, forward and backward; scores and their gradients are never written to memory. Formulas:
// attention/reference.py. Letters: N tokens, H heads, D head dimension (a multiple of 16).

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__) && !defined(__clang__)
#include <immintrin.h>
#endif

// Fields as the Structure of library.py has them. All contiguous: qkv [B, N, 3, H, D], out [B, N, H, D] and their
// gradients in bf16, lse [B, H, N]: log2 of the sum of 2^score.
struct Attention {
  const uint32_t* qkv;
  uint32_t* out;
  float* lse;
  const uint32_t* grad_out;
  uint32_t* grad_qkv;
  int64_t batch, tokens, heads, head_dim;
  int32_t threads;
};

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,prefer-vector-width=512")

namespace {

#include "bf16_products.h"

constexpr float kLog2E = 1.44269504f;

// 2^x, to 3e-6 of itself: 2^n times the series of 2^f, |f| <= 1/2.
inline __m512 exp2_of(__m512 x) {
  __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(1.33335581e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.61812911e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.55041087e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40226507e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93147181e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// Lengths in pairs, of which a row of D bf16 has D / 2.
struct Shape {
  int64_t N, D, width, key_pairs, row, out_row;
  float score_to_log2;

  explicit Shape(const Attention& task)
      : N(task.tokens), D(task.head_dim), width(whole_vectors(N)), key_pairs((N + 1) / 2),
        row(3 * task.heads * D / 2), out_row(task.heads * D / 2),
        score_to_log2(kLog2E / __builtin_sqrtf(static_cast<float>(D))) {}
};

// Scores of one query [width] -> weights in bf16, not yet divided by their sum; returns lse and 1 / sum.
void softmax(const float* scores, const Shape& shape, uint32_t* weights, float* lse, float* inverse_sum) {
  auto mask = [&](int64_t n) { return first_lanes(shape.N - n); };
  __m512 largest = _mm512_set1_ps(-__builtin_inff());
  for (int64_t n = 0; n < shape.width; n += 16)
    largest = _mm512_mask_max_ps(largest, mask(n), largest, _mm512_loadu_ps(scores + n));
  const float top = _mm512_reduce_max_ps(largest) * shape.score_to_log2;
  __m512 sums = _mm512_setzero_ps();
  for (int64_t n = 0; n < shape.width; n += 16) {
    __m512 power = _mm512_fmsub_ps(_mm512_loadu_ps(scores + n), _mm512_set1_ps(shape.score_to_log2), _mm512_set1_ps(top));
    __m512 weight = _mm512_maskz_mov_ps(mask(n), exp2_of(power));
    sums = _mm512_add_ps(sums, weight);
    store_bfloat16(weights + n / 2, weight);
  }
  const float sum = _mm512_reduce_add_ps(sums);
  *lse = top + __builtin_log2f(sum);
  *inverse_sum = 1.0f / sum;
}

// Offset, in pairs, of a head's first row in qkv or its gradient (part: 0 q, 1 k, 2 v).
inline int64_t part_at(const Attention& task, const Shape& shape, int64_t sample, int64_t head, int part) {
  return sample * shape.N * shape.row + (part * task.heads + head) * shape.D / 2;
}

void forward_head(const Attention& task, const Shape& shape, int64_t sample, int64_t head, Scratch& scratch) {
  uint32_t* keys = scratch.take<uint32_t>(shape.D / 2 * shape.width);
  uint32_t* values = scratch.take<uint32_t>(shape.key_pairs * shape.D);
  float* scores = scratch.take<float>(kBlock * shape.width);
  uint32_t* weights = scratch.take<uint32_t>(kBlock * shape.width / 2);
  float* found = scratch.take<float>(kBlock * shape.D);
  const uint32_t* queries = task.qkv + part_at(task, shape, sample, head, 0);
  pack_transposed(task.qkv + part_at(task, shape, sample, head, 1), shape.row, shape.N, shape.D / 2, keys, shape.width);
  pack_row_pairs(task.qkv + part_at(task, shape, sample, head, 2), shape.row, shape.N, shape.D, values);
  uint32_t* out = task.out + sample * shape.N * shape.out_row + head * shape.D / 2;
  float* lse = task.lse + (sample * task.heads + head) * shape.N;
  for (int64_t q = 0; q < shape.N; q += kBlock) {
    const int64_t rows = shape.N - q < kBlock ? shape.N - q : kBlock;
    multiply(rows, {queries + q * shape.row, shape.row, 1}, keys, shape.D / 2, scores, shape.width);
    float inverse_sums[kBlock];
    for (int64_t i = 0; i < rows; i++)
      softmax(scores + i * shape.width, shape, weights + i * shape.width / 2, lse + q + i, inverse_sums + i);
    multiply(rows, {weights, shape.width / 2, 1}, values, shape.key_pairs, found, shape.D);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t d = 0; d < shape.D; d += 16)
        store_bfloat16(out + (q + i) * shape.out_row + d / 2,
                       _mm512_mul_ps(_mm512_loadu_ps(found + i * shape.D + d), _mm512_set1_ps(inverse_sums[i])));
  }
}

void store_rows(const float* from, int64_t rows, int64_t head_dim, uint32_t* to, int64_t stride) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t d = 0; d < head_dim; d += 16)
      store_bfloat16(to + i * stride + d / 2, _mm512_loadu_ps(from + i * head_dim + d));
}

// Keys are rows here and queries columns, so that the sums over queries (of k and v) read rows as they are; for the sum
// over keys (of q) the scores' gradients are kept as pairs of two rows.
void backward_head(const Attention& task, const Shape& shape, int64_t sample, int64_t head, Scratch& scratch) {
  const int64_t N = shape.N, D = shape.D, width = shape.width, tile = kBlock * width;
  uint32_t* queries_across = scratch.take<uint32_t>(D / 2 * width);
  uint32_t* grads_across = scratch.take<uint32_t>(D / 2 * width);
  uint32_t* queries = scratch.take<uint32_t>(shape.key_pairs * D);
  uint32_t* grads = scratch.take<uint32_t>(shape.key_pairs * D);
  uint32_t* keys = scratch.take<uint32_t>(shape.key_pairs * D);
  uint32_t* grad_pairs = scratch.take<uint32_t>(shape.key_pairs * width);
  float *scores = scratch.take<float>(tile), *grad_weights = scratch.take<float>(tile);
  uint32_t *weights = scratch.take<uint32_t>(tile / 2), *grad_scores = scratch.take<uint32_t>(tile / 2);
  float *lse = scratch.take<float>(width), *delta = scratch.take<float>(width);
  float* found = scratch.take<float>(kBlock * D);
  const uint32_t *q = task.qkv + part_at(task, shape, sample, head, 0), *k = task.qkv + part_at(task, shape, sample, head, 1),
                 *v = task.qkv + part_at(task, shape, sample, head, 2);
  const int64_t out_at = sample * N * shape.out_row + head * D / 2;
  const uint32_t *grad_out = task.grad_out + out_at, *out = task.out + out_at;
  pack_transposed(q, shape.row, N, D / 2, queries_across, width);
  pack_transposed(grad_out, shape.out_row, N, D / 2, grads_across, width);
  pack_row_pairs(q, shape.row, N, D, queries);
  pack_row_pairs(grad_out, shape.out_row, N, D, grads);
  pack_row_pairs(k, shape.row, N, D, keys);
  for (int64_t n = 0; n < width; n++) {
    __m512 products = _mm512_setzero_ps();
    for (int64_t d = 0; n < N && d < D; d += 16)
      products = _mm512_fmadd_ps(load_bfloat16(grad_out + n * shape.out_row + d / 2),
                                 load_bfloat16(out + n * shape.out_row + d / 2), products);
    delta[n] = _mm512_reduce_add_ps(products);
    lse[n] = n < N ? task.lse[(sample * task.heads + head) * N + n] : __builtin_inff();  // no weight beyond the last
  }
  const __m512 to_log2 = _mm512_set1_ps(shape.score_to_log2), scale = _mm512_set1_ps(shape.score_to_log2 / kLog2E);
  for (int64_t n = 0; n < N; n += kBlock) {
    const int64_t rows = N - n < kBlock ? N - n : kBlock;
    multiply(rows, {k + n * shape.row, shape.row, 1}, queries_across, D / 2, scores, width);
    multiply(rows, {v + n * shape.row, shape.row, 1}, grads_across, D / 2, grad_weights, width);
    for (int64_t c = 0; c < width; c += 16) {
      const __m512 lse_here = _mm512_loadu_ps(lse + c), delta_here = _mm512_loadu_ps(delta + c);
      __m512i even = _mm512_setzero_si512();
      for (int64_t i = 0; i < rows; i++) {
        __m512 weight = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i * width + c), to_log2, lse_here));
        __m512 grad = _mm512_sub_ps(_mm512_loadu_ps(grad_weights + i * width + c), delta_here);
        __m256i rounded = to_bfloat16(_mm512_mul_ps(_mm512_mul_ps(weight, grad), scale));
        store_bfloat16(weights + (i * width + c) / 2, weight);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(grad_scores + (i * width + c) / 2), rounded);
        __m512i half = _mm512_cvtepu16_epi32(rounded);
        if (i % 2 == 0) even = half;
        if (i % 2 == 1 || i == rows - 1)
          _mm512_storeu_si512(grad_pairs + (n + i) / 2 * width + c,
                              i % 2 == 1 ? _mm512_or_si512(even, _mm512_slli_epi32(half, 16)) : even);
      }
    }
    multiply(rows, {grad_scores, width / 2, 1}, queries, shape.key_pairs, found, D);
    store_rows(found, rows, D, task.grad_qkv + part_at(task, shape, sample, head, 1) + n * shape.row, shape.row);
    multiply(rows, {weights, width / 2, 1}, grads, shape.key_pairs, found, D);
    store_rows(found, rows, D, task.grad_qkv + part_at(task, shape, sample, head, 2) + n * shape.row, shape.row);
  }
  for (int64_t n = 0; n < N; n += kBlock) {
    const int64_t rows = N - n < kBlock ? N - n : kBlock;
    multiply(rows, {grad_pairs + n, 1, width}, keys, shape.key_pairs, found, D);
    store_rows(found, rows, D, task.grad_qkv + part_at(task, shape, sample, head, 0) + n * shape.row, shape.row);
  }
}

// Whether there was memory to work in.
bool run(const Attention& task, bool backward) {
  const Shape shape(task);
  // the backward's parts, which are more than the forward's
  const int64_t bytes = 4 * (2 * shape.D / 2 * shape.width + shape.key_pairs * (3 * shape.D + shape.width) +
                             3 * kBlock * shape.width + 2 * shape.width + kBlock * shape.D) + 13 * 64;
  bool enough = true;
#pragma omp parallel num_threads(task.threads) reduction(&& : enough)
  {
    Scratch memory(bytes);
    enough = memory.is_there();
#pragma omp for schedule(dynamic)
    for (int64_t head = 0; head < task.batch * task.heads; head++) {
      if (!enough) continue;
      Scratch& scratch = memory.start();
      (backward ? backward_head : forward_head)(task, shape, head / task.heads, head % task.heads, scratch);
    }
  }
  return enough;
}

}  // namespace
#pragma GCC pop_options

extern "C" {

int64_t deit_fast_cpu_attention_bytes() { return sizeof(Attention); }

int deit_fast_cpu_attention_runs() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

int deit_fast_cpu_attention(const Attention* task, int backward) { return run(*task, backward != 0); }

}  // extern "C"

#else

extern "C" {
int64_t deit_fast_cpu_attention_bytes() { return sizeof(Attention); }
int deit_fast_cpu_attention_runs() { return 0; }
int deit_fast_cpu_attention(const Attention*, int) { return 0; }
}  // extern "C"

#endif
