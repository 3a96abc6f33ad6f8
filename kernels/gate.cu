// Fused, dense form: the first product, and the rows for an engine's second; apart from fused.cu, whose kernels the compiler
// makes otherwise beside these. See src/ops/fused/gate_cuda.rs.

#include "fused_concat.cuh"
#include "fused_gate.cuh"
