//! Loops over the 32 lanes of a warp.
//!
//! Bodies are compiled twice: for any processor, and with AVX2 and FMA, which is what makes the loops fast.

use super::registers::{Long, Word};

/// Whether the processor has what the fast versions need; only asking it makes one.
#[derive(Clone, Copy)]
pub struct Fast(bool);

impl Fast {
    pub fn detect() -> Self {
        Self(detect())
    }

    pub fn is(self) -> bool {
        self.0
    }
}

fn detect() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A function in two versions out of one body.
macro_rules! two_versions {
    ($(#[$doc:meta])* $name:ident, $fast:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        $(#[$doc])*
        pub fn $name(fast: $crate::exec::lanes::Fast, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            if fast.is() {
                // SAFETY: a `Fast` that is one was made by asking the processor for these features.
                return unsafe { $fast($($arg),*) };
            }
            let _ = fast;
            $body($($arg),*);
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        fn $fast($($arg: $ty),*) {
            $body($($arg),*);
        }
    };
}
pub(super) use two_versions;

/// An expression of each lane.
macro_rules! each {
    ($($name:ident in $lanes:expr),+ => $value:expr) => {{
        let mut out = [Default::default(); 32];
        for lane in 0..32 {
            $(let $name = $lanes[lane];)+
            out[lane] = $value;
        }
        out
    }};
}
pub(super) use each;

/// Lanes for which a condition holds.
macro_rules! holds {
    ($($name:ident in $lanes:expr),+ => $value:expr) => {{
        let mut out = 0_u32;
        for lane in 0..32 {
            $(let $name = $lanes[lane];)+
            out |= if $value { 1_u32 << lane } else { 0 };
        }
        out
    }};
}
pub(super) use holds;

/// Writes the lanes of a mask.
#[inline(always)]
pub fn put(to: &mut Word, from: &Word, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..32 {
        to[lane] = if mask >> lane & 1 != 0 { from[lane] } else { to[lane] };
    }
}

/// Writes the lanes of a mask.
#[inline(always)]
pub fn put_long(to: &mut Long, from: &Long, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..32 {
        to[lane] = if mask >> lane & 1 != 0 { from[lane] } else { to[lane] };
    }
}
