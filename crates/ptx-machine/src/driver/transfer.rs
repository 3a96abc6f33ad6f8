//! Memory, copies and fills.

use super::codes::Code;
use super::context::MEMORY;
use super::ffi::{Host, Out};
use super::in_context;
use super::launch::Task;
use super::machine::{Machine, refuse};

impl Machine {
    fn take(&mut self, address: Out<u64>, bytes: usize) -> Result<(), Code> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        if self.device.used().saturating_add(bytes as u64) > MEMORY {
            return Err(Code::OUT_OF_MEMORY);
        }
        address.give(self.device.alloc(bytes as u64))
    }

    fn release(&mut self, address: u64) -> Result<(), Code> {
        if address == 0 { Ok(()) } else { refuse(self.device.free(address)) }
    }

    /// A copy or fill that waits for its end: not while something captures, and on the legacy stream.
    fn now(&mut self, task: &Task) -> Result<(), Code> {
        self.refuse_unsafe_call()?;
        self.refuse_legacy_stream(0)?;
        self.execute(task)
    }

    /// Allocations and their ends in the order of a stream; there are no pools that a capture could use.
    fn ordered(&mut self, stream: usize) -> Result<(), Code> {
        let capture = self.capturing(stream)?;
        if let Some(capture) = capture {
            self.invalidate(capture);
            return Err(Code::CAPTURE_UNSUPPORTED);
        }
        self.refuse_legacy_stream(stream)
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> i32 {
    in_context(|machine| {
        machine.refuse_unsafe_call()?;
        machine.take(address, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    in_context(|machine| {
        machine.refuse_unsafe_call()?;
        machine.release(address)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) -> i32 {
    in_context(|machine| {
        machine.ordered(stream)?;
        machine.take(address, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: usize) -> i32 {
    in_context(|machine| {
        machine.ordered(stream)?;
        machine.release(address)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> i32 {
    in_context(|machine| {
        free.give((MEMORY - machine.device.used()) as usize)?;
        total.give(MEMORY as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: Host, bytes: usize) -> i32 {
    in_context(|machine| machine.now(&Task::ToDevice { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: Host, bytes: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, Task::ToDevice { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: Host, from: u64, bytes: usize) -> i32 {
    in_context(|machine| machine.now(&Task::ToHost { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: Host, from: u64, bytes: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, Task::ToHost { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> i32 {
    in_context(|machine| machine.now(&Task::Copy { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, Task::Copy { to, from, bytes }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: usize,
    from: u64,
    _from_context: usize,
    bytes: usize,
    stream: usize,
) -> i32 {
    cuMemcpyDtoDAsync_v2(to, from, bytes, stream)
}

fn fill(to: u64, pattern: &[u8], count: usize) -> Task {
    Task::Fill { to, pattern: pattern.to_vec(), count }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> i32 {
    in_context(|machine| machine.now(&fill(to, &[value], count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, fill(to, &[value], count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> i32 {
    in_context(|machine| machine.now(&fill(to, &value.to_le_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, fill(to, &value.to_le_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> i32 {
    in_context(|machine| machine.now(&fill(to, &value.to_le_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: usize) -> i32 {
    in_context(|machine| machine.submit(stream, fill(to, &value.to_le_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: u32) -> i32 {
    in_context(|machine| {
        machine.refuse_unsafe_call()?;
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let memory = vec![0_u128; bytes.div_ceil(16)].into_boxed_slice();
        let at = memory.as_ptr() as usize;
        machine.pinned.insert(at, memory);
        address.give(at)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(address: Out<usize>, bytes: usize) -> i32 {
    cuMemHostAlloc(address, bytes, 0)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: usize) -> i32 {
    in_context(|machine| {
        machine.refuse_unsafe_call()?;
        machine.pinned.remove(&address).map(drop).ok_or(Code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetFlags(flags: Out<u32>, address: usize) -> i32 {
    in_context(|machine| {
        machine.pinned.get(&address).ok_or(Code::INVALID_VALUE)?;
        flags.give(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: usize, bytes: usize, _flags: u32) -> i32 {
    in_context(|machine| {
        machine.refuse_unsafe_call()?;
        if address == 0 || bytes == 0 { Err(Code::INVALID_VALUE) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(_address: usize) -> i32 {
    in_context(|machine| machine.refuse_unsafe_call())
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAddressRange_v2(base: Out<u64>, bytes: Out<usize>, address: u64) -> i32 {
    in_context(|machine| {
        let (start, length) = machine.device.find(address).ok_or(Code::NOT_FOUND)?;
        base.give_if_wanted(start);
        bytes.give_if_wanted(length as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(value: Host, attribute: i32, address: u64) -> i32 {
    in_context(|machine| {
        let (start, length) = machine.device.find(address).ok_or(Code::INVALID_VALUE)?;
        match attribute {
            1 => value.write(&super::context::current().to_le_bytes()),
            // The kind of memory: the device's.
            2 => value.write(&2_u32.to_le_bytes()),
            3 => value.write(&address.to_le_bytes()),
            9 => value.write(&0_i32.to_le_bytes()),
            11 => value.write(&start.to_le_bytes()),
            12 => value.write(&length.to_le_bytes()),
            _ => Err(Code::NOT_SUPPORTED),
        }
    })
}
