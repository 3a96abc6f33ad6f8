// All rooms in one translation unit: what `compile` compiles. A room's names are its own.
#include "common.cuh"
#include "mma.cuh"
#include "rows.cuh"
#include "tile.cuh"

namespace route {
#include "route.cu"
}
namespace plan {
#include "plan.cu"
}
namespace shrink {
#include "shrink.cu"
}
namespace expand {
#include "expand.cu"
}
namespace base {
#include "base.cu"
}
