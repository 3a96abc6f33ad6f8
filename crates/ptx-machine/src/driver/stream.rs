//! Streams and events.

use std::time::Instant;

use super::capture::Mark;
use super::codes::Code;
use super::ffi::{Host, Out};
use super::launch::{HostFunction, Task};
use super::machine::Machine;
use super::{call, in_context};

/// A stream.
#[derive(Debug)]
pub struct Stream {
    /// The capture that it takes part in.
    pub capture: Option<u64>,
    /// Whether the legacy stream waits for it.
    pub blocking: bool,
    flags: u32,
}

/// An event.
#[derive(Debug)]
pub struct Event {
    pub recorded: Recorded,
    timing: bool,
}

/// Where an event was recorded last.
#[derive(Debug, Clone, Copy)]
pub enum Recorded {
    Never,
    Now(Instant),
    Captured(Mark),
}

/// The streams that exist without being created: null, legacy, and the thread's.
const fn is_legacy(stream: usize) -> bool {
    stream <= 2
}

impl Machine {
    /// The stream is known.
    pub fn check_stream(&self, stream: usize) -> Result<(), Code> {
        let known = is_legacy(stream) || self.streams.contains_key(&stream);
        if known { Ok(()) } else { Err(Code::INVALID_HANDLE) }
    }

    /// Work for a stream: at once, or recorded where it captures.
    pub fn submit(&mut self, stream: usize, task: Task) -> Result<(), Code> {
        if let Some(capture) = self.capturing(stream)? {
            return self.record(capture, stream, [task]);
        }
        self.refuse_legacy_stream(stream)?;
        self.execute(&task)
    }

    /// The legacy stream waits for every blocking stream: none of them may capture.
    pub fn refuse_legacy_stream(&mut self, stream: usize) -> Result<(), Code> {
        if !is_legacy(stream) || self.captures.is_empty() {
            return Ok(());
        }
        let blocked: Vec<u64> = self
            .streams
            .values()
            .filter(|stream| stream.blocking)
            .filter_map(|stream| stream.capture)
            .collect();
        blocked.iter().for_each(|&capture| self.invalidate(capture));
        if blocked.is_empty() { Ok(()) } else { Err(Code::CAPTURE_IMPLICIT) }
    }

    /// A stream's end is asked for: not while it captures.
    fn settle(&mut self, stream: usize) -> Result<(), Code> {
        self.check_stream(stream)?;
        if let Some(capture) = self.capturing(stream)? {
            self.invalidate(capture);
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        self.refuse_legacy_stream(stream)
    }

    fn event(&mut self, event: usize) -> Result<&mut Event, Code> {
        self.events.get_mut(&event).ok_or(Code::INVALID_HANDLE)
    }

    /// An event's end is asked for: not of one that was captured.
    fn settle_event(&mut self, event: usize) -> Result<(), Code> {
        if let Recorded::Captured(mark) = self.event(event)?.recorded {
            self.invalidate(mark.capture);
            return Err(Code::CAPTURED_EVENT);
        }
        Ok(())
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: Out<usize>, flags: u32) -> i32 {
    in_context(|machine| {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let handle = machine.handle();
        machine.streams.insert(handle, Stream { capture: None, blocking: flags == 0, flags });
        stream.give(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(stream: Out<usize>, flags: u32, _priority: i32) -> i32 {
    cuStreamCreate(stream, flags)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> i32 {
    in_context(|machine| {
        let gone = machine.streams.remove(&stream).ok_or(Code::INVALID_HANDLE)?;
        gone.capture.into_iter().for_each(|capture| machine.invalidate(capture));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> i32 {
    in_context(|machine| machine.settle(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: usize) -> i32 {
    in_context(|machine| machine.settle(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetFlags(stream: usize, flags: Out<u32>) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        flags.give(machine.streams.get(&stream).map_or(0, |stream| stream.flags))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetPriority(stream: usize, priority: Out<i32>) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        priority.give(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx(stream: usize, context: Out<usize>) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        context.give(super::context::current())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        let capture = machine.capturing(stream)?;
        match (machine.event(event)?.recorded, capture) {
            (Recorded::Never, _) | (Recorded::Now(_), None) => Ok(()),
            (Recorded::Now(_), Some(capture)) => {
                machine.invalidate(capture);
                Err(Code::CAPTURE_ISOLATION)
            }
            (Recorded::Captured(mark), _) => machine.depend(stream, mark),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(stream: usize, function: Option<HostFunction>, data: Host) -> i32 {
    let Some(function) = function else { return Code::INVALID_VALUE.0 };
    let mut at_once = false;
    let code = in_context(|machine| {
        machine.check_stream(stream)?;
        at_once = machine.capturing(stream)?.is_none();
        machine.submit(stream, Task::Call { function, data })
    });
    // Outside of the lock: the function may take other locks of the program.
    if code == 0 && at_once {
        function(data);
    }
    code
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAttachMemAsync(stream: usize, _address: u64, _bytes: usize, _flags: u32) -> i32 {
    in_context(|machine| machine.check_stream(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: Out<usize>, flags: u32) -> i32 {
    in_context(|machine| {
        let handle = machine.handle();
        machine.events.insert(handle, Event { recorded: Recorded::Never, timing: flags & 2 == 0 });
        event.give(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        let recorded = match machine.capturing(stream)? {
            Some(capture) => Recorded::Captured(machine.mark(capture, stream)),
            None => {
                machine.refuse_legacy_stream(stream)?;
                Recorded::Now(Instant::now())
            }
        };
        machine.event(event)?.recorded = recorded;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) -> i32 {
    cuEventRecord(event, stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> i32 {
    in_context(|machine| machine.settle_event(event))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> i32 {
    in_context(|machine| machine.settle_event(event))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: usize, end: usize) -> i32 {
    in_context(|machine| {
        machine.settle_event(start)?;
        machine.settle_event(end)?;
        let mut at = |event| match machine.event(event)? {
            Event { recorded: Recorded::Now(at), timing: true } => Ok(*at),
            _ => Err(Code::INVALID_HANDLE),
        };
        let (start, end) = (at(start)?, at(end)?);
        milliseconds.give(end.saturating_duration_since(start).as_secs_f32() * 1e3)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: usize, end: usize) -> i32 {
    cuEventElapsedTime(milliseconds, start, end)
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> i32 {
    call(|machine| machine.events.remove(&event).map(drop).ok_or(Code::INVALID_HANDLE))
}
