//! The kernels of every operation on the CPU: rows times rows ([`dot`]: searches), rows times packed columns ([`panel`]: every
//! frozen weight), rows times ranks ([`ranks`]: shrink), routes times rows of B ([`routes`]: expand), weighted sums of rows ([`terms`]).

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over registers: closures are not inlined into the instruction set"
)]

pub(super) mod deviation;
pub(super) mod dot;
pub(super) mod pack;
pub(super) mod panel;
pub(super) mod ranks;
pub(super) mod routes;
pub(super) mod terms;

#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Level, Portable, Simd};

/// A kernel's arguments, and the kernel for every instruction set.
trait Kernel {
    /// # Safety
    /// The instruction set is there, and the arguments keep the kernel's own contract.
    unsafe fn run<S: Simd>(self);
}

/// Runs the kernel inside a function that enables the instruction set.
///
/// # Safety
/// As [`Kernel::run`].
unsafe fn run<K: Kernel>(level: Level, kernel: K) {
    // SAFETY: passed on.
    unsafe {
        match level {
            Level::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => run_avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => run_avx512(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => run_neon(kernel),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: passed on.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: passed on.
    unsafe { kernel.run::<Avx512>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn run_neon<K: Kernel>(kernel: K) {
    // SAFETY: passed on.
    unsafe { kernel.run::<Neon>() }
}

#[cfg(test)]
mod tests;
