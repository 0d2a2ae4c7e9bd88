// Matrix products in bf16 for processors with AVX512-BF16; attention.cc includes it within its namespace and target.
//
// vdpbf16ps adds the products of pairs of bf16 to 16 sums, so the left matrix is read as pairs along the summed
// dimension, each broadcast, and the right one is packed as pairs of that dimension, 16 columns wide. A pair is a
// uint32_t; lengths of rows in memory are in pairs.

constexpr int kRows = 6;     // of a tile; with 4 vectors of columns its sums fill 24 of 32 registers
constexpr int kVectors = 4;  // of 16 columns
constexpr int kPanel = 16 * kVectors;
constexpr int kBlock = 2 * kRows;  // rows that are multiplied by a panel while it is in the nearest cache

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
