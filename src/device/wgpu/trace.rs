//! What a handle records, with every buffer's bytes from before: another implementation of WebGPU can repeat it, as
//! `tests/dawn` does. For tests; it stops and copies at each new buffer.

use super::launch::Launch;
use super::{Access, Wgpu};
use crate::error::Result;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Commands in the order in which they were recorded, and the buffers that they use.
#[derive(Debug, Default)]
pub struct Trace {
    /// Every buffer once.
    pub buffers: Vec<Traced>,
    /// In order.
    pub commands: Vec<Command>,
}

/// A buffer.
#[derive(Debug)]
pub struct Traced {
    /// Itself.
    pub buffer: wgpu::Buffer,
    /// Its bytes when the first command that uses it was recorded.
    pub before: Vec<u8>,
}

/// A command.
#[derive(Debug)]
pub enum Command {
    /// Bytes of a buffer become 0.
    Clear {
        /// Place in [`Trace::buffers`].
        buffer: usize,
        /// Bytes.
        range: Range<u64>,
    },
    /// A dispatch.
    Dispatch(Dispatch),
}

/// A dispatch.
#[derive(Debug)]
pub struct Dispatch {
    /// The entry point.
    pub entry: &'static str,
    /// The whole WGSL text.
    pub text: Arc<str>,
    /// Workgroups.
    pub groups: [u32; 2],
    /// The uniform behind the bindings.
    pub params: Vec<u8>,
    /// Storage, in the order of binding numbers from 0 on.
    pub bindings: Vec<Bound>,
}

/// A bound range of a buffer.
#[derive(Debug)]
pub struct Bound {
    /// The variable.
    pub name: &'static str,
    /// Place in [`Trace::buffers`].
    pub buffer: usize,
    /// Bytes.
    pub range: Range<u64>,
    /// Whether the kernel may write.
    pub writes: bool,
}

/// A trace that clones of a handle share.
pub(super) type Shared = Arc<Mutex<Trace>>;

impl Wgpu {
    /// The same device; what this handle and its clones record is kept from here on.
    pub fn traced(&self) -> Self {
        Self { trace: Some(Shared::default()), ..self.clone() }
    }

    /// What was kept since the handle was made or last asked; nothing of one that is not [`Self::traced`].
    pub fn take_trace(&self) -> Trace {
        self.trace.as_ref().map(|trace| std::mem::take(&mut *lock(trace))).unwrap_or_default()
    }

    /// Records zeros.
    pub(crate) fn clear(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        buffer: &wgpu::Buffer,
        range: Range<u64>,
    ) -> Result<()> {
        if let Some(trace) = &self.trace {
            let buffer = self.trace_buffer(trace, buffer)?;
            lock(trace).commands.push(Command::Clear { buffer, range: range.clone() });
        }
        encoder.clear_buffer(buffer, range.start, Some(range.end - range.start));
        Ok(())
    }

    /// Keeps a dispatch, if asked to.
    pub(super) fn trace_dispatch(
        &self,
        launch: &Launch,
        text: &Arc<str>,
        params: Vec<u8>,
        groups: [u32; 2],
    ) -> Result<()> {
        let Some(trace) = &self.trace else { return Ok(()) };
        let alignment = u64::from(self.limits().min_storage_buffer_offset_alignment);
        let mut bindings = Vec::with_capacity(launch.bindings.len());
        for binding in launch.bindings {
            bindings.push(Bound {
                name: binding.name,
                buffer: self.trace_buffer(trace, binding.buffer)?,
                range: binding.bound(alignment),
                writes: binding.access == Access::ReadWrite,
            });
        }
        let dispatch = Dispatch { entry: launch.entry, text: text.clone(), groups, params, bindings };
        lock(trace).commands.push(Command::Dispatch(dispatch));
        Ok(())
    }

    /// A buffer's place, with its bytes where it is new.
    fn trace_buffer(&self, trace: &Shared, buffer: &wgpu::Buffer) -> Result<usize> {
        if let Some(found) = lock(trace).buffers.iter().position(|traced| traced.buffer == *buffer) {
            return Ok(found);
        }
        let before = self.download(buffer, buffer.size() as usize)?;
        let buffers = &mut lock(trace).buffers;
        buffers.push(Traced { buffer: buffer.clone(), before });
        Ok(buffers.len() - 1)
    }
}

fn lock(trace: &Shared) -> MutexGuard<'_, Trace> {
    trace.lock().unwrap_or_else(|p| p.into_inner())
}
