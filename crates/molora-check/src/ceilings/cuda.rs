//! A CUDA device's ceilings by the kernels of `kernels/ceiling.cu`, timed by events: multiply-adds in f32, on tensor cores in
//! f16 and bf16, and a read of memory far beyond its caches.

use super::{Best, Meter};
use crate::subject::cuda_clock::CudaClock;
use molora::device::Cuda;
use molora::device::cuda::cudarc::driver::CudaSlice;
use molora::device::cuda::{CEILING_THREADS, View, ViewMut};
use molora::element::ElementType;
use molora::error::Result;
use std::time::Duration;

/// Blocks of a multiprocessor: as many threads as it holds.
const BLOCKS: usize = 8;
/// A measurement that takes as long is long enough.
const LONG: Duration = Duration::from_millis(5);
/// Bytes that are read, where the device has four times as much.
const BYTES: usize = 1 << 30;
/// Times that the memory is read in one measurement.
const READS: usize = 4;

/// Measures again and again; memory is taken once.
pub struct CudaMeter<'a> {
    cuda: &'a Cuda,
    sums: CudaSlice<f32>,
    memory: CudaSlice<f32>,
    words: usize,
    /// Steps of each element type that take long enough.
    steps: [u32; ElementType::ALL.len()],
    best: Best,
}

impl<'a> CudaMeter<'a> {
    /// A meter of this device.
    pub fn new(cuda: &'a Cuda) -> Result<Self> {
        let properties = cuda.properties();
        let threads = (properties.multiprocessors as usize).max(1) * BLOCKS * CEILING_THREADS;
        let a_step = 16 * threads;
        let bytes = BYTES.min(properties.memory / 4);
        let words = (bytes / 4 / a_step).max(1) * a_step;
        let (sums, memory) = (cuda.upload(&vec![0f32; threads])?, cuda.upload(&vec![1f32; words])?);
        Ok(Self { cuda, sums, memory, words, steps: [1; ElementType::ALL.len()], best: Best::default() })
    }

    /// Operations a second. As many steps as take long enough, in this round or the next.
    fn rate(&mut self, element: ElementType) -> Result<f64> {
        let steps = &mut self.steps[element as usize];
        loop {
            let mut sums = ViewMut::whole(self.cuda, &mut self.sums)?;
            let clock = CudaClock::start(self.cuda)?;
            let flops = self.cuda.ceiling_multiply(element, *steps, &mut sums)?;
            let time = clock.stop()?;
            if time >= LONG || *steps >= 1 << 24 {
                return Ok(flops / time.as_secs_f64());
            }
            *steps *= if time * 8 < LONG { 8 } else { 2 };
        }
    }

    fn read(&mut self) -> Result<f64> {
        let mut sums = ViewMut::whole(self.cuda, &mut self.sums)?;
        let memory = View::new(self.cuda, self.memory.slice(..self.words))?;
        let clock = CudaClock::start(self.cuda)?;
        let mut bytes = 0.0;
        for _ in 0..READS {
            bytes += self.cuda.ceiling_read(&memory, &mut sums)?;
        }
        Ok(bytes / clock.stop()?.as_secs_f64())
    }
}

impl Meter for CudaMeter<'_> {
    fn round(&mut self) -> Result<()> {
        let offer = self.cuda.offer();
        let mut round = Best { bytes: self.read()?, ..Best::default() };
        for (i, element) in ElementType::ALL.into_iter().enumerate() {
            // What has no tensor cores is widened.
            let own = element == ElementType::F32 || offer.has_mma(element, element);
            round.flops[i] = if own { self.rate(element)? } else { round.flops[0] };
        }
        self.best = self.best.better(round);
        Ok(())
    }

    fn best(&self) -> Best {
        self.best
    }
}
