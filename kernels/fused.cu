// Fused: base and experts in one accumulator; see src/ops/fused.rs.

#include "fused_few.cuh"
#include "fused_mma.cuh"
#include "fused_many.cuh"
