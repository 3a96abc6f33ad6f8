// All rooms in one translation unit: what `compile` compiles.
#include "route.cu"
#include "plan.cu"
#include "shrink.cu"
#include "expand.cu"
#include "base.cu"
