//! The kernels of every operation on the CPU: rows times rows ([`dot`]: searches), rows times packed columns ([`panel`]: every
//! frozen weight), rows times ranks ([`ranks`]: shrink), routes times rows of B ([`routes`]: expand), weighted sums of rows ([`terms`]).

#![expect(
    clippy::needless_range_loop,
    reason = "plain loops over registers: closures are not inlined into the instruction set"
)]
#![expect(private_interfaces, reason = "`Kernels` seals `Element`, and nobody else can name it")]

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
use deviation::Moment;
use pack::Pack;
use panel::Blocks;
use ranks::Ranks;
use routes::AddRoutes;
use terms::{AddRow, StoreRow};

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

/// The kernels that read or write one element type.
///
/// Methods of the types themselves are compiled here, once; [`run`] alone, in generic operations, would be compiled again in
/// every crate that calls them.
///
/// # Safety
/// Of every method: as [`Kernel::run`].
pub trait Kernels: Sized {
    unsafe fn add_row(level: Level, kernel: AddRow<'_, Self>);
    unsafe fn add_routes(level: Level, kernel: AddRoutes<'_, Self>);
    unsafe fn blocks(level: Level, kernel: Blocks<'_, Self>);
    unsafe fn moment(level: Level, kernel: Moment<'_, Self>);
    unsafe fn pack(level: Level, kernel: Pack<'_, Self>);
    unsafe fn ranks(level: Level, kernel: Ranks<'_, Self>);
    unsafe fn store_row(level: Level, kernel: StoreRow<'_, Self>);
}

macro_rules! kernels {
    ($element:ty: $($method:ident, $kernel:ident);*) => {
        impl Kernels for $element {
            $(unsafe fn $method(level: Level, kernel: $kernel<'_, Self>) {
                // SAFETY: passed on.
                unsafe { run(level, kernel) }
            })*
        }
    };
    ($($element:ty),*) => {
        $(kernels! { $element: add_row, AddRow; add_routes, AddRoutes; blocks, Blocks; moment, Moment; pack, Pack; ranks, Ranks;
            store_row, StoreRow })*
    };
}
kernels!(f32, half::f16, half::bf16);

#[cfg(test)]
mod tests;
