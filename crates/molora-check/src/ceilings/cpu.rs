//! The CPU's ceilings: twelve chains of multiply-adds a thread that never leave registers, and threads that each read their
//! part of a memory far beyond the caches.
//!
//! Elements of 16 bits are widened on their way into registers, so their multiply-adds are those of f32.

use super::{Best, Meter};
use crate::machine;
use molora::element::ElementType;
use molora::error::Result;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Memory that reading streams through, where the machine has four times as much to spare.
const BYTES: u64 = 1 << 30;

/// Parts of the memory: every round reads another one.
const PARTS: usize = 4;

/// Chains, each of which waits for its last result: enough for every processor's latency times width.
const CHAINS: usize = 12;

/// Multiply-adds of a chain in one round.
const STEPS: usize = 4_000_000;

/// Measures again and again; memory is taken once.
pub struct CpuMeter {
    threads: usize,
    memory: Vec<f32>,
    rounds: usize,
    best: Best,
}

impl CpuMeter {
    /// With so many threads.
    pub fn new(threads: usize) -> Self {
        let bytes = BYTES.min(machine::memory_available() / 4).max(1 << 26);
        // Not zeros, which would all be one page.
        Self { threads, memory: vec![1.0; bytes as usize / 4], rounds: 0, best: Best::default() }
    }

    /// What all threads do together in a second.
    fn rate(&self, task: impl Fn(usize) -> f64 + Sync) -> f64 {
        let barrier = Barrier::new(self.threads);
        let runs: Vec<(Instant, Instant, f64)> = std::thread::scope(|scope| {
            let run = |thread| {
                let (barrier, task) = (&barrier, &task);
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    let done = task(thread);
                    (start, Instant::now(), done)
                })
            };
            let threads: Vec<_> = (0..self.threads).map(run).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let start = runs.iter().map(|run| run.0).min().expect("a thread");
        let end = runs.iter().map(|run| run.1).max().expect("a thread");
        runs.iter().map(|run| run.2).sum::<f64>() / (end - start).as_secs_f64()
    }
}

impl Meter for CpuMeter {
    fn round(&mut self) -> Result<()> {
        let flops = self.rate(|_| {
            black_box(multiply_adds(STEPS));
            flops_of(STEPS)
        });
        let words = self.memory.len() / PARTS;
        let (first, part) = (self.rounds % PARTS * words, words / self.threads);
        let bytes = self.rate(|thread| {
            black_box(sum(&self.memory[first + thread * part..][..part]));
            part as f64 * 4.0
        });
        self.rounds += 1;
        self.best = self.best.better(Best { flops: [flops; ElementType::ALL.len()], bytes });
        Ok(())
    }

    fn best(&self) -> Best {
        self.best
    }
}

/// Operations of [`multiply_adds`].
fn flops_of(steps: usize) -> f64 {
    (2 * CHAINS * lanes() * steps) as f64
}

#[cfg(target_arch = "x86_64")]
fn lanes() -> usize {
    if is_x86_feature_detected!("avx512f") { 16 } else { 8 }
}

#[cfg(not(target_arch = "x86_64"))]
fn lanes() -> usize {
    8
}

/// `steps` multiply-adds of every lane of every chain.
fn multiply_adds(steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instruction set was found.
            return unsafe { wide::multiply_adds_512(steps) };
        }
        if is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma") {
            // SAFETY: the instruction sets were found.
            return unsafe { wide::multiply_adds_256(steps) };
        }
    }
    let (a, b) = (black_box(1.000_001f32), black_box(1e-7f32));
    let mut sums = [[0.5f32; 8]; CHAINS];
    for _ in 0..steps {
        for sum in sums.as_flattened_mut() {
            // One instruction where every processor of the architecture has it; a call into a library where not.
            *sum = if cfg!(target_arch = "aarch64") { sum.mul_add(a, b) } else { *sum * a + b };
        }
    }
    sums.as_flattened().iter().sum()
}

fn sum(words: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the instruction set was found.
        return unsafe { wide::sum_256(words) };
    }
    sum_plain(words)
}

#[inline(always)]
fn sum_plain(words: &[f32]) -> f32 {
    let mut sums = [0f32; 64];
    for chunk in words.chunks_exact(64) {
        sums.iter_mut().zip(chunk).for_each(|(sum, w)| *sum += w);
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::CHAINS;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn multiply_adds_512(steps: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(1.000_001), _mm512_set1_ps(1e-7));
        let mut sums = [_mm512_set1_ps(0.5); CHAINS];
        for _ in 0..steps / 2 {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx,fma")]
    pub fn multiply_adds_256(steps: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(1.000_001), _mm256_set1_ps(1e-7));
        let mut sums = [_mm256_set1_ps(0.5); CHAINS];
        for _ in 0..steps / 2 {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    /// Memory is slower than any width of loads.
    #[target_feature(enable = "avx2")]
    pub fn sum_256(words: &[f32]) -> f32 {
        super::sum_plain(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_of_operations_is_that_of_the_chains() {
        // Every lane ends at s_n = s_(n-1) a + b: with a close to 1 and b to 0 about 0.5 each, so the sum tells the lanes.
        let steps = 1000;
        let (a, b) = (f64::from(1.000_001f32), f64::from(1e-7f32));
        let one = (0..steps).fold(0.5f64, |s, _| s * a + b);
        let summed = if cfg!(target_arch = "x86_64") && lanes() == 8 { 1 } else { lanes() };
        let sums = f64::from(multiply_adds(steps)) / one;
        assert!((sums - (CHAINS * summed) as f64).abs() < 0.05, "{sums} lanes at {one}");
        assert_eq!(flops_of(steps), (2 * CHAINS * lanes() * steps) as f64);
    }

    #[test]
    fn a_sum_reads_every_word() {
        let words: Vec<f32> = (0..640).map(|i| (i % 7) as f32).collect();
        assert_eq!(sum(&words), words.iter().sum::<f32>());
    }

    #[test]
    fn rounds_only_raise_the_best() {
        let mut meter = CpuMeter { memory: vec![1.0; 1 << 22], ..CpuMeter::new(1) };
        meter.round().unwrap();
        let first = meter.best();
        assert!(first.flops.iter().all(|&f| f > 1e8 && f < 1e13) && first.bytes > 1e8, "{first:?}");
        meter.round().unwrap();
        assert_eq!(meter.best(), meter.best().better(first));
    }
}
