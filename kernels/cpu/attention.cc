// Attention of short rows for processors with AVX512-BF16 (Zen 4, Sapphire Rapids and later): packed qkv, one head at a
// time in the second cache, forward and backward; scores and their gradients are never written to memory. Formulas:
// attention/reference.py. Letters: N tokens, H heads, D head dimension (a multiple of 16).
//
// One product serves all: vdpbf16ps adds the products of pairs of bf16 to 16 sums, so the left matrix is read as pairs
// along the summed dimension, each broadcast, and the right one is packed as pairs of that dimension, 16 columns wide.

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

constexpr int kRows = 6;     // of a tile; with 4 vectors of columns its sums fill 24 of 32 registers
constexpr int kVectors = 4;  // of 16 columns
constexpr int kPanel = 16 * kVectors;
constexpr int kBlock = 2 * kRows;  // rows that are multiplied by a panel while it is in the nearest cache
constexpr float kLog2E = 1.44269504f;

inline int64_t whole_vectors(int64_t count) { return (count + 15) / 16 * 16; }

// Pairs of a left matrix: that of row m and pair k stands at data[m * row + k * pair].
struct Left {
  const uint32_t* data;
  int64_t row, pair;
};

template <int M, int V>
inline __attribute__((always_inline)) void multiply_tile(Left a, const uint32_t* b, int64_t pairs, float* c,
                                                         int64_t c_row) {
  __m512 sums[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[m][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; k++) {
    __m512i right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) right[v] = _mm512_loadu_si512(b + (k * V + v) * 16);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      __m512i left = _mm512_set1_epi32(static_cast<int>(a.data[m * a.row + k * a.pair]));
#pragma GCC unroll 4
      for (int v = 0; v < V; v++)
        sums[m][v] = _mm512_dpbf16_ps(sums[m][v], reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right[v]));
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) _mm512_storeu_ps(c + m * c_row + 16 * v, sums[m][v]);
}

template <int V>
void multiply_columns(int64_t rows, Left a, const uint32_t* b, int64_t pairs, float* c, int64_t c_row) {
  for (int64_t m = 0; m < rows; m += kRows) {
    const Left here = {a.data + m * a.row, a.row, a.pair};
    float* to = c + m * c_row;
    switch (rows - m) {
      case 1: multiply_tile<1, V>(here, b, pairs, to, c_row); break;
      case 2: multiply_tile<2, V>(here, b, pairs, to, c_row); break;
      case 3: multiply_tile<3, V>(here, b, pairs, to, c_row); break;
      case 4: multiply_tile<4, V>(here, b, pairs, to, c_row); break;
      case 5: multiply_tile<5, V>(here, b, pairs, to, c_row); break;
      default: multiply_tile<kRows, V>(here, b, pairs, to, c_row);
    }
  }
}

// c [rows, columns] = a [rows, pairs x 2] b [pairs x 2, columns]; columns are whole vectors. b is packed in panels of
// up to kVectors vectors of columns, one after another, each [pairs, its columns]: it is read as it lies in memory.
void multiply(int64_t rows, Left a, const uint32_t* b, int64_t pairs, float* c, int64_t columns) {
  for (int64_t n = 0; n < columns; n += kPanel) {
    const uint32_t* panel = b + n * pairs;
    switch ((columns - n) / 16) {
      case 1: multiply_columns<1>(rows, a, panel, pairs, c + n, columns); break;
      case 2: multiply_columns<2>(rows, a, panel, pairs, c + n, columns); break;
      case 3: multiply_columns<3>(rows, a, panel, pairs, c + n, columns); break;
      default: multiply_columns<kVectors>(rows, a, panel, pairs, c + n, columns);
    }
  }
}

// Where the vector of 16 columns from n on stands in the panels of a packed matrix, at its first pair; its rows there
// are `row` apart.
struct Panel {
  int64_t at, row;

  Panel(int64_t n, int64_t pairs, int64_t columns) {
    const int64_t first = n / kPanel * kPanel;
    row = columns - first < kPanel ? columns - first : kPanel;
    at = first * pairs + n - first;
  }
};

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// 16 rows of 16 -> 16 columns, in registers: pairs of rows, pairs of those, then quarters of registers.
inline void transpose(__m512i rows[16]) {
  __m512i twos[16], fours[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {  // quarter q of fours[4 i + j] holds rows 4 i to 4 i + 3 of column 4 q + j
    __m512i even_first = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    __m512i even_last = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    __m512i odd_first = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xdd);
    __m512i odd_last = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_i32x4(even_first, even_last, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(odd_first, odd_last, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(even_first, even_last, 0xdd);
    rows[12 + j] = _mm512_shuffle_i32x4(odd_first, odd_last, 0xdd);
  }
}

// Rows [count, pairs] -> panels of [pairs, width], zeros beyond count: a right matrix summed over what a row holds.
void pack_transposed(const uint32_t* from, int64_t stride, int64_t count, int64_t pairs, uint32_t* to, int64_t width) {
  for (int64_t n = 0; n < width; n += 16) {
    const Panel panel(n, pairs, width);
    for (int64_t k = 0; k < pairs; k += 16) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; i++)
        rows[i] = n + i < count ? _mm512_maskz_loadu_epi32(first_lanes(pairs - k), from + (n + i) * stride + k)
                                : _mm512_setzero_si512();
      transpose(rows);
      for (int64_t i = 0; i < 16 && k + i < pairs; i++) _mm512_storeu_si512(to + panel.at + (k + i) * panel.row, rows[i]);
    }
  }
}

// Rows [count, D] -> panels of [ceil(count / 2), D], each pair from two rows: a right matrix summed over rows.
void pack_row_pairs(const uint32_t* from, int64_t stride, int64_t count, int64_t head_dim, uint32_t* to) {
  for (int64_t d = 0; d < head_dim; d += 16) {
    const Panel panel(d, (count + 1) / 2, head_dim);
    for (int64_t n = 0; n < count; n += 2) {
      auto row = [&](int64_t i) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i * stride + d / 2)));
      };
      __m512i second = n + 1 < count ? row(n + 1) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + panel.at + n / 2 * panel.row, _mm512_or_si512(row(n), _mm512_slli_epi32(second, 16)));
    }
  }
}

inline __m256i to_bfloat16(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

inline void store_bfloat16(uint32_t* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_bfloat16(values));
}

inline __m512 load_bfloat16(const uint32_t* from) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

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

// What a thread works in; each part starts on a cache line.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64))) {}
  ~Scratch() { std::free(memory_); }
  bool is_there() const { return memory_ != nullptr; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // From its beginning again.
  Scratch& start() {
    used_ = 0;
    return *this;
  }

  template <typename T>
  T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return found;
  }

 private:
  char* memory_;
  int64_t used_ = 0;
};

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
