// What both operators need of DALI.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dali/pipeline/operator/operator.h"
#include "kernels.h"

namespace deit_fast {

using dali::OpSpec;
using dali::OutputDesc;
using dali::Workspace;
using CpuOperator = dali::Operator<dali::CPUBackend>;

inline const Kernels& kernels_of(const OpSpec& spec) {
  const auto name = spec.GetArgument<std::string>("simd");
  const Kernels* found = find_level(name.c_str());
  DALI_ENFORCE(found, "this CPU or build has no SIMD level " + name);
  return *found;
}

// One for each thread of the pool, made when it is first needed.
template <class T>
class PerThread {
 public:
  void resize(int threads) { objects_.resize(threads); }

  T& operator[](int thread) {
    if (!objects_[thread]) objects_[thread] = std::make_unique<T>();
    return *objects_[thread];
  }

 private:
  std::vector<std::unique_ptr<T>> objects_;
};

template <class T>
const T* data(const Workspace& ws, int input, int sample) {
  return ws.Input<dali::CPUBackend>(input).tensor<T>(sample);
}

}  // namespace deit_fast
