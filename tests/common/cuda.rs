//! The CUDA device of the tests: a GPU, or the PTX machine that stands in for one.

use molora::Cuda;
use molora::device::cuda::cudarc::driver::{CudaSlice, DeviceRepr};

/// The first device; says so where there is none, and fails where `MOLORA_REQUIRE` names one.
pub fn device() -> Option<Cuda> {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(why) => {
            println!("not tested: {why}");
            None
        }
    }
}

/// Writes into a slice from its start on.
pub fn write<T: DeviceRepr>(cuda: &Cuda, slice: &mut CudaSlice<T>, values: &[T]) {
    cuda.stream().memcpy_htod(values, slice).unwrap();
}
