//! What this machine can do at most: multiply-adds a second from registers, bytes a second from memory.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Best rates seen, of all threads together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ceilings {
    /// Floating-point operations a second, two a multiply-add.
    pub flops: f64,
    /// Bytes a second, read once from memory far beyond the caches.
    pub bytes: f64,
}

/// f32 words of memory that reading streams through: 1 GiB.
const WORDS: usize = 1 << 28;

/// Measures again and again; memory is taken once.
pub struct Meter {
    threads: usize,
    memory: Vec<f32>,
    rounds: usize,
    pub best: Ceilings,
}

impl Meter {
    pub fn new(threads: usize) -> Self {
        Self { threads, memory: vec![1.0; WORDS], rounds: 0, best: Ceilings::default() }
    }

    /// One more round of both.
    pub fn round(&mut self) {
        const STEPS: usize = 4_000_000;
        let flops = self.rate(|_| {
            black_box(multiply_adds(STEPS));
            (STEPS * flops_of_a_step()) as f64
        });
        // Another quarter of the memory every round, so that no cache has it.
        let part = WORDS / 4 / self.threads;
        let first = self.rounds % 4 * (WORDS / 4);
        let bytes = self.rate(|thread| {
            black_box(sum(&self.memory[first + thread * part..][..part]));
            part as f64 * 4.0
        });
        self.best = Ceilings { flops: self.best.flops.max(flops), bytes: self.best.bytes.max(bytes) };
        self.rounds += 1;
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

fn flops_of_a_step() -> usize {
    2 * 24 * lanes()
}

#[cfg(target_arch = "x86_64")]
fn lanes() -> usize {
    if is_x86_feature_detected!("avx512f") { 16 } else { 8 }
}

#[cfg(not(target_arch = "x86_64"))]
fn lanes() -> usize {
    8
}

fn multiply_adds(steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction set was found.
    unsafe {
        if is_x86_feature_detected!("avx512f") {
            return wide::multiply_adds_512(steps);
        }
        if is_x86_feature_detected!("fma") {
            return wide::multiply_adds_256(steps);
        }
    }
    let (a, b) = (black_box(1.000_001), black_box(1e-7));
    let mut sums = [[0.5f32; 8]; 12];
    for _ in 0..2 * steps {
        for sum in sums.as_flattened_mut() {
            *sum = *sum * a + b;
        }
    }
    sums.as_flattened().iter().sum()
}

fn sum(words: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction set was found.
    unsafe {
        if is_x86_feature_detected!("avx512f") {
            return wide::sum_512(words);
        }
    }
    let mut sums = [0f32; 64];
    for chunk in words.chunks_exact(64) {
        sums.iter_mut().zip(chunk).for_each(|(sum, w)| *sum += w);
    }
    sums.iter().sum()
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn multiply_adds_512(steps: usize) -> f32 {
        let (a, b) = (_mm512_set1_ps(1.000_001), _mm512_set1_ps(1e-7));
        let mut sums = [_mm512_set1_ps(0.5); 12];
        for _ in 0..steps {
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
            sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }

    #[target_feature(enable = "avx,fma")]
    pub fn multiply_adds_256(steps: usize) -> f32 {
        let (a, b) = (_mm256_set1_ps(1.000_001), _mm256_set1_ps(1e-7));
        let mut sums = [_mm256_set1_ps(0.5); 12];
        for _ in 0..steps {
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
            sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
        }
        sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
    }

    #[target_feature(enable = "avx512f")]
    pub fn sum_512(words: &[f32]) -> f32 {
        let mut sums = [_mm512_setzero_ps(); 8];
        for chunk in words.chunks_exact(128) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: sixteen of the chunk's words.
                *sum = _mm512_add_ps(*sum, unsafe { _mm512_loadu_ps(chunk[16 * i..][..16].as_ptr()) });
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
}
