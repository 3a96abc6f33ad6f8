//! Arguments as C passes them.
//!
//! These types stand in the signatures of exported functions, so that C callers make them; the API's contract is that a
//! pointer is null or valid for what the function does with it.

use std::ffi::{CStr, CString, c_char, c_void};

use super::codes::Code;

/// Where a function leaves a result.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Leaves the result; a null pointer is an invalid value.
    pub fn give(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then valid for a write by the API's contract.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Leaves the result where one is wanted.
    pub fn give_if_wanted(self, value: T) {
        let _ = self.give(value);
    }
}

/// A string from C.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Text(*const c_char);

impl Text {
    /// The string; null or not UTF-8 is an invalid value.
    pub fn get(self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then a string with its end by the API's contract.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_VALUE)
    }
}

/// Host memory that a copy reads or writes.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Host(*mut c_void);

// SAFETY: an address; the caller of the API keeps what it points to valid for as long as a copy or a graph uses it.
unsafe impl Send for Host {}
// SAFETY: as above; nothing is read through a shared reference but by calls of the API.
unsafe impl Sync for Host {}

impl Host {
    /// No address.
    pub const NULL: Self = Self(std::ptr::null_mut());

    /// Reads `bytes` bytes.
    pub fn read(self, bytes: usize) -> Result<Vec<u8>, Code> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then valid for `bytes` bytes by the API's contract.
        Ok(unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), bytes) }.to_vec())
    }

    /// Writes bytes.
    pub fn write(self, bytes: &[u8]) -> Result<(), Code> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then valid for as many bytes by the API's contract; `bytes` is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast::<u8>(), bytes.len()) };
        Ok(())
    }

    /// The address.
    pub fn address(self) -> usize {
        self.0 as usize
    }

    /// The `index`th element of an array of addresses.
    pub fn element(self, index: usize) -> Result<Self, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and then an array with this many elements by the API's contract.
        Ok(unsafe { self.0.cast::<Self>().add(index).read() })
    }
}

/// Writes a string with its end into a buffer of `length` bytes, cut where it does not fit.
pub fn give_text(to: Host, length: usize, text: &str) -> Result<(), Code> {
    let text = CString::new(text).map_err(|_| Code::INVALID_VALUE)?;
    let bytes = text.as_bytes();
    let kept = bytes.len().min(length.saturating_sub(1));
    let mut cut = bytes[..kept].to_vec();
    cut.push(0);
    if length == 0 { Err(Code::INVALID_VALUE) } else { to.write(&cut) }
}
