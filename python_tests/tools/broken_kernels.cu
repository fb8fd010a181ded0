// A kernel that breaks no gate of tools/machine_code, and one for each gate that breaks it.
#include <cuda_runtime.h>

#define FIRST int(blockIdx.x * blockDim.x + threadIdx.x)
#define STEP int(gridDim.x * blockDim.x)

// report: budget *_kernel<float, 4> 12
template <class T, int V>
__global__ void __launch_bounds__(128) sound_kernel(const T* in, T* out, int count, int option) {
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) {
    // report: vector sizeof(T) * V
    float4 v = reinterpret_cast<const float4*>(in)[i];
    if (option) {
      // report: begin rare
      for (int k = 0; k < option; k++) v.x += sqrtf(v.y + float(k));
      // report: end
    }
    // report: vector sizeof(T) * V
    reinterpret_cast<float4*>(out)[i] = v;
  }
  // report: end
}

template <class T, int V>
__global__ void __launch_bounds__(128) narrow_kernel(const T* in, T* out, int count, int) {
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) {
    T v[V];
#pragma unroll
    for (int k = 0; k < V; k++) v[k] = in[i * V + k];  // report: vector sizeof(T) * V
    reinterpret_cast<float4*>(out)[i] = make_float4(v[0], v[1], v[2], v[3]);
  }
  // report: end
}

template <class T, int V>
__global__ void __launch_bounds__(128) local_kernel(const T* in, T* out, int count, int option) {
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) {
    T v[4 * V];
    for (int k = 0; k < 4 * V; k++) v[k] = in[i + k];
    v[(option + i) % (4 * V)] = T(0);
    T sum = 0;
    for (int k = 0; k < 4 * V; k++) sum += v[(k * option) % (4 * V)];
    out[i] = sum;
  }
  // report: end
}

template <class T>
__device__ __noinline__ T halved(T value) {
  return value > T(0) ? value / T(2) : -value;
}
template <class T, int V>
__global__ void __launch_bounds__(128) call_kernel(const T* in, T* out, int count, int) {
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) out[i] = halved(in[i]);
  // report: end
}

template <class T, int V>
__global__ void __launch_bounds__(128) generic_kernel(const T* in, T* out, int count, int option) {
  __shared__ T zeros[128];
  zeros[threadIdx.x] = T(0);
  __syncthreads();
  const T* from = option ? zeros : in;
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) out[i] = from[i % 128];
  // report: end
}

template <class T, int V>
__global__ void __launch_bounds__(128) shared_kernel(const T* in, T* out, int count, int) {
  // report: dynamic shared_kernel<* 49152 - 256
  extern __shared__ T dynamic[];
  __shared__ T part[128];
  for (int i = FIRST; i < count; i += STEP) {
    part[threadIdx.x] = in[i];
    dynamic[threadIdx.x] = in[i + 1];
    __syncthreads();
    out[i] = part[127 - threadIdx.x] + dynamic[127 - threadIdx.x];
    __syncthreads();
  }
}

template <class T, int V>
__global__ void __launch_bounds__(128) costly_kernel(const T* in, T* out, int count, int) {
  // report: hot V
  for (int i = FIRST; i < count; i += STEP) {
    float4 v = reinterpret_cast<const float4*>(in)[i];
#pragma unroll
    for (int k = 0; k < 16; k++) v.x = fmaf(v.x, v.y, v.z * v.w), v.y = v.x + v.z, v.w -= v.y;
    reinterpret_cast<float4*>(out)[i] = v;
  }
  // report: end
}

#define INSTANTIATE(kernel) \
  template __global__ void kernel<float, 4>(const float*, float*, int, int)
INSTANTIATE(sound_kernel);
INSTANTIATE(narrow_kernel);
INSTANTIATE(local_kernel);
INSTANTIATE(call_kernel);
INSTANTIATE(generic_kernel);
INSTANTIATE(shared_kernel);
INSTANTIATE(costly_kernel);
