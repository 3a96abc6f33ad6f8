//! Time of recorded work: timestamps of the device where they can be believed, else the wall's around submission and wait.

use molora::device::Wgpu;
use molora::error::Result;
use std::time::{Duration, Instant};
use wgpu::{Buffer, CommandEncoder, QuerySet};

/// What time is read from.
pub(crate) struct WgpuClock {
    stamps: Option<Stamps>,
}

struct Stamps {
    queries: QuerySet,
    resolved: Buffer,
    nanoseconds: f64,
}

/// Both times of the same work.
struct Both {
    wall: Duration,
    stamps: Option<Duration>,
}

impl WgpuClock {
    /// The device's timestamps, where work of known length (`busy` records some, at least some milliseconds of it) takes as
    /// long by them as by the wall: some drivers stamp when they are asked and not when the work is done.
    pub(crate) fn new(wgpu: &Wgpu, busy: impl FnOnce(&mut CommandEncoder) -> Result<()>) -> Result<Self> {
        let mut clock = Self { stamps: Stamps::new(wgpu) };
        let Both { wall, stamps } = clock.both(wgpu, busy)?;
        let believed = |stamps: Duration| stamps <= wall.mul_f64(1.05) && stamps >= wall.mul_f64(0.5);
        if !stamps.is_some_and(believed) {
            clock.stamps = None;
        }
        Ok(clock)
    }

    /// The wall's clock.
    pub(crate) fn wall() -> Self {
        Self { stamps: None }
    }

    /// `timestamps` or `wall`.
    pub(crate) fn name(&self) -> &'static str {
        if self.stamps.is_some() { "timestamps" } else { "wall" }
    }

    /// Time of the work that `record` records: recording itself is not in it.
    pub(crate) fn time(
        &self,
        wgpu: &Wgpu,
        record: impl FnOnce(&mut CommandEncoder) -> Result<()>,
    ) -> Result<Duration> {
        let Both { wall, stamps } = self.both(wgpu, record)?;
        Ok(stamps.unwrap_or(wall))
    }

    fn both(&self, wgpu: &Wgpu, record: impl FnOnce(&mut CommandEncoder) -> Result<()>) -> Result<Both> {
        let mut encoder = wgpu.encoder();
        if let Some(stamps) = &self.stamps {
            stamps.write(&mut encoder, 0);
        }
        record(&mut encoder)?;
        if let Some(stamps) = &self.stamps {
            stamps.write(&mut encoder, 1);
            encoder.resolve_query_set(&stamps.queries, 0..2, &stamps.resolved, 0);
        }
        let commands = encoder.finish();
        wgpu.wait()?;
        let start = Instant::now();
        wgpu.queue().submit([commands]);
        wgpu.wait()?;
        let wall = start.elapsed();
        let stamps = self.stamps.as_ref().map(|stamps| stamps.read(wgpu)).transpose()?;
        Ok(Both { wall, stamps })
    }
}

impl Stamps {
    fn new(wgpu: &Wgpu) -> Option<Self> {
        let device = wgpu.device();
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let (label, ty, count) = (Some("clock"), wgpu::QueryType::Timestamp, 2);
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor { label, ty, count });
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            size: 16,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let nanoseconds = f64::from(wgpu.queue().get_timestamp_period());
        Some(Self { queries, resolved, nanoseconds })
    }

    /// A pass without work, which begins when all before it is done.
    fn write(&self, encoder: &mut CommandEncoder, index: u32) {
        let timestamp_writes = wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(index),
            end_of_pass_write_index: None,
        };
        let (label, timestamp_writes) = (Some("clock"), Some(timestamp_writes));
        drop(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes }));
    }

    fn read(&self, wgpu: &Wgpu) -> Result<Duration> {
        let stamps: Vec<u64> = wgpu.download(&self.resolved, 2)?;
        Ok(Duration::from_secs_f64(stamps[1].saturating_sub(stamps[0]) as f64 * self.nanoseconds * 1e-9))
    }
}
