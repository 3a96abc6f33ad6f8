//! Captures and graphs.
//!
//! A capture keeps the tasks of its streams in the order in which they were given, which is an order that the graph allows.
//! What a driver refuses during a capture is refused here, and ends the capture as it does there.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use super::codes::Code;
use super::ffi::{Host, Out};
use super::launch::Task;
use super::machine::Machine;
use super::{call, in_context};

/// Modes of captures and threads, as numbers of the API.
const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;
const RELAXED: i32 = 2;

thread_local! {
    static THREAD_MODE: Cell<i32> = const { Cell::new(GLOBAL) };
}

/// A capture under way.
#[derive(Debug)]
pub struct Capture {
    mode: i32,
    origin: usize,
    thread: ThreadId,
    /// Whether nothing has ended it.
    pub valid: bool,
    tasks: Vec<Task>,
    forks: HashMap<usize, Fork>,
}

/// A stream that joined a capture: after which tasks it had its last, and up to which others waited for it.
#[derive(Debug, Default)]
struct Fork {
    last: usize,
    joined: usize,
}

/// A moment in a capture.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    pub capture: u64,
    stream: usize,
    tasks: usize,
}

/// A captured graph.
#[derive(Debug)]
pub struct Graph {
    tasks: Arc<Vec<Task>>,
}

impl Machine {
    /// The capture of a stream; an error where one was invalidated.
    pub fn capturing(&self, stream: usize) -> Result<Option<u64>, Code> {
        self.check_stream(stream)?;
        let Some(number) = self.streams.get(&stream).and_then(|stream| stream.capture) else {
            return Ok(None);
        };
        let valid = self.captures.get(&number).is_some_and(|capture| capture.valid);
        if valid { Ok(Some(number)) } else { Err(Code::CAPTURE_INVALIDATED) }
    }

    /// Ends a capture but for its `cuStreamEndCapture`.
    pub fn invalidate(&mut self, capture: u64) {
        if let Some(capture) = self.captures.get_mut(&capture) {
            capture.valid = false;
        }
    }

    /// Calls that might wait for the device: refused while a capture is under way that has not allowed them.
    pub fn refuse_unsafe_call(&mut self) -> Result<(), Code> {
        let (mode, thread) = (THREAD_MODE.get(), thread::current().id());
        let mut refused = false;
        for capture in self.captures.values_mut().filter(|capture| capture.valid) {
            let own = capture.thread == thread && capture.mode != RELAXED;
            let others = capture.mode == GLOBAL && mode == GLOBAL;
            if mode != RELAXED && (own || others) {
                capture.valid = false;
                refused = true;
            }
        }
        if refused { Err(Code::CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// Adds tasks to a capture.
    pub fn record(
        &mut self,
        capture: u64,
        stream: usize,
        tasks: impl IntoIterator<Item = Task>,
    ) -> Result<(), Code> {
        let capture = self.captures.get_mut(&capture).ok_or(Code::CAPTURE_INVALIDATED)?;
        capture.tasks.extend(tasks);
        if let Some(fork) = capture.forks.get_mut(&stream) {
            fork.last = capture.tasks.len();
        }
        Ok(())
    }

    /// This moment of a stream in a capture.
    pub fn mark(&self, capture: u64, stream: usize) -> Mark {
        let tasks = self.captures.get(&capture).map_or(0, |capture| capture.tasks.len());
        Mark { capture, stream, tasks }
    }

    /// A stream waits for a moment of a capture: it takes part from then on.
    pub fn depend(&mut self, stream: usize, mark: Mark) -> Result<(), Code> {
        let Some(capture) = self.captures.get_mut(&mark.capture) else { return Err(Code::CAPTURED_EVENT) };
        if !capture.valid {
            return Err(Code::CAPTURE_INVALIDATED);
        }
        let Some(held) = self.streams.get_mut(&stream) else {
            capture.valid = false;
            return Err(Code::CAPTURE_IMPLICIT);
        };
        match held.capture {
            None => {
                held.capture = Some(mark.capture);
                capture.forks.insert(stream, Fork::default());
            }
            Some(other) if other != mark.capture => {
                capture.valid = false;
                self.invalidate(other);
                return Err(Code::CAPTURE_MERGE);
            }
            Some(_) => {}
        }
        if let Some(fork) = capture.forks.get_mut(&mark.stream).filter(|_| stream != mark.stream) {
            fork.joined = fork.joined.max(mark.tasks);
        }
        Ok(())
    }

    fn begin_capture(&mut self, stream: usize, mode: i32) -> Result<(), Code> {
        if !(GLOBAL..=RELAXED).contains(&mode) {
            return Err(Code::INVALID_VALUE);
        }
        self.check_stream(stream)?;
        let number = self.handle() as u64;
        let Some(held) = self.streams.get_mut(&stream) else { return Err(Code::CAPTURE_UNSUPPORTED) };
        if held.capture.is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        held.capture = Some(number);
        let thread = thread::current().id();
        let (tasks, forks) = (Vec::new(), HashMap::new());
        self.captures.insert(number, Capture { mode, origin: stream, thread, valid: true, tasks, forks });
        Ok(())
    }

    fn end_capture(&mut self, stream: usize) -> Result<Vec<Task>, Code> {
        self.check_stream(stream)?;
        let number =
            self.streams.get(&stream).and_then(|stream| stream.capture).ok_or(Code::ILLEGAL_STATE)?;
        let capture = self.captures.get_mut(&number).ok_or(Code::ILLEGAL_STATE)?;
        if capture.origin != stream {
            capture.valid = false;
            return Err(Code::CAPTURE_UNMATCHED);
        }
        if capture.mode != RELAXED && capture.thread != thread::current().id() {
            return Err(Code::CAPTURE_WRONG_THREAD);
        }
        for stream in self.streams.values_mut().filter(|stream| stream.capture == Some(number)) {
            stream.capture = None;
        }
        let capture = self.captures.remove(&number).ok_or(Code::ILLEGAL_STATE)?;
        if !capture.valid {
            return Err(Code::CAPTURE_INVALIDATED);
        }
        if capture.forks.values().any(|fork| fork.last > fork.joined) {
            return Err(Code::CAPTURE_UNJOINED);
        }
        Ok(capture.tasks)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: usize, mode: i32) -> i32 {
    in_context(|machine| machine.begin_capture(stream, mode))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: usize, graph: Out<usize>) -> i32 {
    in_context(|machine| {
        graph.give(0)?;
        let tasks = Arc::new(machine.end_capture(stream)?);
        let handle = machine.handle();
        machine.graphs.insert(handle, Graph { tasks });
        graph.give(handle)
    })
}

fn status(machine: &Machine, stream: usize) -> Result<(i32, u64), Code> {
    machine.check_stream(stream)?;
    let number = machine.streams.get(&stream).and_then(|stream| stream.capture);
    Ok(match machine.capturing(stream) {
        Ok(None) => (0, 0),
        Ok(Some(number)) => (1, number),
        Err(_) => (2, number.unwrap_or(0)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: usize, result: Out<i32>) -> i32 {
    in_context(|machine| result.give(status(machine, stream)?.0))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: usize,
    result: Out<i32>,
    id: Out<u64>,
    graph: Out<usize>,
    dependencies: Out<usize>,
    count: Out<usize>,
) -> i32 {
    in_context(|machine| {
        let (now, number) = status(machine, stream)?;
        result.give(now)?;
        id.give_if_wanted(number);
        graph.give_if_wanted(0);
        dependencies.give_if_wanted(0);
        count.give_if_wanted(0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(mode: Host) -> i32 {
    in_context(|_| {
        let bytes = mode.read(4)?;
        let new = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if ![GLOBAL, THREAD_LOCAL, RELAXED].contains(&new) {
            return Err(Code::INVALID_VALUE);
        }
        mode.write(&THREAD_MODE.replace(new).to_le_bytes())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(instance: Out<usize>, graph: usize, _flags: u64) -> i32 {
    in_context(|machine| {
        let tasks = machine.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?.tasks.clone();
        let handle = machine.handle();
        machine.instances.insert(handle, tasks);
        instance.give(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetNodes(graph: usize, nodes: Host, count: Out<usize>) -> i32 {
    in_context(|machine| {
        let tasks = machine.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?.tasks.len();
        // Only their number: nodes have no handles of their own.
        if nodes.address() == 0 { count.give(tasks) } else { Err(Code::NOT_SUPPORTED) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(instance: usize, stream: usize) -> i32 {
    let mut tasks = Arc::default();
    let mut at_once = false;
    let code = in_context(|machine| {
        tasks = machine.instances.get(&instance).ok_or(Code::INVALID_HANDLE)?.clone();
        match machine.capturing(stream)? {
            Some(capture) => machine.record(capture, stream, tasks.iter().cloned()),
            None => {
                at_once = true;
                machine.refuse_legacy_stream(stream)
            }
        }
    });
    if code != 0 || !at_once {
        return code;
    }
    for task in tasks.iter() {
        if let Task::Call { function, data } = task {
            function(*data);
        }
        let code = call(|machine| machine.execute(task));
        if code != 0 {
            return code;
        }
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(instance: usize, stream: usize) -> i32 {
    in_context(|machine| {
        machine.check_stream(stream)?;
        machine.instances.get(&instance).map(drop).ok_or(Code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: usize) -> i32 {
    in_context(|machine| machine.graphs.remove(&graph).map(drop).ok_or(Code::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(instance: usize) -> i32 {
    in_context(|machine| machine.instances.remove(&instance).map(drop).ok_or(Code::INVALID_HANDLE))
}
