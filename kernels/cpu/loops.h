// The kernels' loops; elementwise.cc includes them once for each level of instructions, within a namespace of its own,
// so that no code of a higher level runs on a processor without it. The compiler vectorises them. Nothing here may
// instantiate a library template: its copy for one level could end up serving all.
//
// Sums over rows are taken block by block, and the blocks are added in their order: the result depends neither on the
// number of threads nor on which of them was faster.

static inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float load(const float* from) { return *from; }
static inline float load(const BFloat16* from) { return from_bits(static_cast<uint32_t>(from->bits) << 16); }

static inline void store(float* to, float value) { *to = value; }

// To the nearest, of two equally near to the even one; what is not a number stays that.
static inline void store(BFloat16* to, float value) {
  uint32_t bits = to_bits(value);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// e^x of x <= 0, to about 1 unit in the last place: 2^n e^r with |r| <= ln 2 / 2 (Cephes, expf). NaN stays NaN; below
// -87.3, where normal floats end, it is 0.
static inline float exp_of_negative(float x) {
  const bool vanishes = x < -87.3f;
  x = vanishes ? -87.3f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts, so that the first product is exact
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  p *= from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  return vanishes ? 0.0f : p;
}

// Phi(z), and e^(-z^2 / 2), which the density is a multiple of. Abramowitz & Stegun 7.1.26: an error up to 7.5e-8.
static inline float normal_cdf(float z, float* exponential) {
  float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * __builtin_fabsf(z));
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  *exponential = exp_of_negative(-0.5f * z * z);
  float tail = 0.5f * p * t * *exponential;
  return z > 0 ? 1.0f - tail : tail;
}

template <typename T>
static void gelu_forward(const GeluBias& task) {
  const int64_t width = task.width;
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t row = 0; row < task.rows; row++) {
    const T* __restrict x = static_cast<const T*>(task.x) + row * width;
    const float* __restrict bias = task.bias;
    T* __restrict y = static_cast<T*>(task.y) + row * width;
    for (int64_t j = 0; j < width; j++) {
      float z = load(x + j) + bias[j], exponential;
      store(y + j, z * normal_cdf(z, &exponential));
    }
  }
}

template <typename T>
static void gelu_backward(const GeluBias& task) {
  const int64_t width = task.width;
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t block = 0; block < block_count(task.rows); block++) {
    float* __restrict sums = task.sums + block * width;
    for (int64_t j = 0; j < width; j++) sums[j] = 0;
    for (int64_t row = block * kBlockRows; row < block_end(block, task.rows); row++) {
      const T* __restrict grad_y = static_cast<const T*>(task.grad_y) + row * width;
      const T* __restrict x = static_cast<const T*>(task.x) + row * width;
      const float* __restrict bias = task.bias;
      T* __restrict grad_x = static_cast<T*>(task.grad_x) + row * width;
      for (int64_t j = 0; j < width; j++) {
        float z = load(x + j) + bias[j], exponential;
        float cdf = normal_cdf(z, &exponential);
        float grad = load(grad_y + j) * (cdf + z * exponential * 0.39894228f);  // 1 / sqrt(2 pi)
        store(grad_x + j, grad);
        sums[j] += grad;
      }
    }
  }
}

// Where row's sample stands in the branch, as a row; -1 for a sample that was skipped.
static inline int64_t branch_row(const AddNorm& task, int64_t row) {
  if (task.slot == nullptr) return row;
  int64_t slot = task.slot[row / task.tokens];
  return slot < 0 ? -1 : slot * task.tokens + row % task.tokens;
}

template <typename X, typename T>
static void add_norm_forward(const AddNorm& task) {
  const int64_t width = task.width;
  const float inverse_width = 1.0f / static_cast<float>(width);
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t row = 0; row < task.rows; row++) {
    const X* __restrict x = static_cast<const X*>(task.x) + row * width;
    X* __restrict total = static_cast<X*>(task.total) + row * width;
    T* __restrict y = static_cast<T*>(task.y) + row * width;
    const float *__restrict bias = task.bias, *__restrict gamma = task.gamma;
    const float *__restrict weight = task.weight, *__restrict shift = task.shift;
    const int64_t from = branch_row(task, row);
    const float factor = task.drop_path == nullptr ? 1.0f : task.drop_path[row / task.tokens];
    float sum = 0, squares = 0;
    if (from >= 0) {
      const T* __restrict branch = static_cast<const T*>(task.branch) + from * width;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < width; j++) {
        store(total + j, load(x + j) + factor * (gamma[j] * (load(branch + j) + bias[j])));
        sum += load(total + j);
      }
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < width; j++) {
        total[j] = x[j];
        sum += load(x + j);
      }
    }
    const float mean = sum * inverse_width;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < width; j++) {
      float difference = load(total + j) - mean;
      squares += difference * difference;
    }
    const float rstd = 1.0f / __builtin_sqrtf(squares * inverse_width + task.eps);
    for (int64_t j = 0; j < width; j++) store(y + j, (load(total + j) - mean) * rstd * weight[j] + shift[j]);
    task.mean[row] = mean;
    task.rstd[row] = rstd;
  }
}

// The sums are of weight, shift, bias and gamma, one after another; a missing branch leaves gamma's at 0.
template <typename X, typename T>
static void add_norm_backward(const AddNorm& task) {
  const int64_t width = task.width;
  const float inverse_width = 1.0f / static_cast<float>(width);
#pragma omp parallel for num_threads(task.threads) schedule(static)
  for (int64_t block = 0; block < block_count(task.rows); block++) {
    float* __restrict sums_weight = task.sums + block * 4 * width;
    float *__restrict sums_shift = sums_weight + width, *__restrict sums_bias = sums_shift + width;
    float* __restrict sums_gamma = sums_bias + width;
    for (int64_t j = 0; j < 4 * width; j++) sums_weight[j] = 0;
    for (int64_t row = block * kBlockRows; row < block_end(block, task.rows); row++) {
      const X* __restrict total = static_cast<const X*>(task.total) + row * width;
      const T* __restrict grad_y = static_cast<const T*>(task.grad_y) + row * width;
      X* __restrict grad_x = static_cast<X*>(task.grad_x) + row * width;
      const float *__restrict weight = task.weight, *__restrict bias = task.bias, *__restrict gamma = task.gamma;
      const float mean = task.mean[row], rstd = task.rstd[row];
      float first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
      for (int64_t j = 0; j < width; j++) {
        float grad = load(grad_y + j), normed = (load(total + j) - mean) * rstd;
        sums_weight[j] += grad * normed;
        sums_shift[j] += grad;
        first += grad * weight[j];
        second += grad * weight[j] * normed;
      }
      first *= inverse_width;
      second *= inverse_width;
      const int64_t to = branch_row(task, row);
      const float factor = task.drop_path == nullptr ? 1.0f : task.drop_path[row / task.tokens];
      const X* __restrict grad_total =
          task.grad_total == nullptr ? nullptr : static_cast<const X*>(task.grad_total) + row * width;
      float grads[kMaxNormWidth];
      for (int64_t j = 0; j < width; j++) {
        float normed = (load(total + j) - mean) * rstd;
        grads[j] = (load(grad_y + j) * weight[j] - first - normed * second) * rstd;
      }
      if (grad_total != nullptr)
        for (int64_t j = 0; j < width; j++) grads[j] += load(grad_total + j);
      for (int64_t j = 0; j < width; j++) store(grad_x + j, grads[j]);
      if (to < 0) continue;
      T* __restrict grad_branch = static_cast<T*>(task.grad_branch) + to * width;
      if (task.branch != nullptr) {
        const T* __restrict branch = static_cast<const T*>(task.branch) + to * width;
        for (int64_t j = 0; j < width; j++) sums_gamma[j] += factor * grads[j] * (load(branch + j) + bias[j]);
      }
      for (int64_t j = 0; j < width; j++) {
        float grad = factor * gamma[j] * grads[j];
        store(grad_branch + j, grad);
        sums_bias[j] += grad;
      }
    }
  }
}

static void run_gelu(const GeluBias& task, bool backward) {
  if (task.dtype == kFloat32)
    backward ? gelu_backward<float>(task) : gelu_forward<float>(task);
  else
    backward ? gelu_backward<BFloat16>(task) : gelu_forward<BFloat16>(task);
}

static void run_add_norm(const AddNorm& task, bool backward) {
  if (task.dtype == kFloat32 && task.branch_dtype == kFloat32)
    backward ? add_norm_backward<float, float>(task) : add_norm_forward<float, float>(task);
  else if (task.dtype == kFloat32)
    backward ? add_norm_backward<float, BFloat16>(task) : add_norm_forward<float, BFloat16>(task);
  else
    backward ? add_norm_backward<BFloat16, BFloat16>(task) : add_norm_forward<BFloat16, BFloat16>(task);
}
