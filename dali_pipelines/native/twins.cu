// The operators on a GPU: one launch a batch, one thread block an image (twins.h). Build with --fmad=false.
#include "twins.h"

namespace deit_fast {

struct CudaBlock {
  __device__ int rank() const { return threadIdx.x; }
  __device__ int count() const { return blockDim.x; }
  __device__ void sync() { __syncthreads(); }
  __device__ void add(uint32_t* target, uint32_t value) { atomicAdd(target, value); }
};

constexpr int kThreads = 512;
// Two blocks an SM leave 64 registers a thread; left to itself ptxas aims at three for sm_100 and spills.
constexpr int kBlocksPerSm = 2;

}  // namespace deit_fast

using namespace deit_fast;

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerSm) deit_fast_crop(const TwinCrop* crops) {
  CudaBlock block;
  twin_crop(block, crops[blockIdx.x]);
}

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerSm) deit_fast_augment(TwinSpec spec, const TwinView* views) {
  __shared__ TwinShared shared;
  CudaBlock block;
  twin_augment(block, shared, spec, views[blockIdx.x]);
}
