//! The driver's result codes, as far as the machine gives them.

use std::ffi::CStr;

use crate::fault::Kind;

/// A result code that is not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub const INVALID_VALUE: Self = Self(1);
    pub const OUT_OF_MEMORY: Self = Self(2);
    pub const NOT_INITIALIZED: Self = Self(3);
    pub const INVALID_DEVICE: Self = Self(101);
    pub const INVALID_CONTEXT: Self = Self(201);
    pub const NO_BINARY_FOR_GPU: Self = Self(209);
    pub const INVALID_PTX: Self = Self(218);
    pub const UNSUPPORTED_PTX_VERSION: Self = Self(222);
    pub const FILE_NOT_FOUND: Self = Self(301);
    pub const INVALID_HANDLE: Self = Self(400);
    pub const ILLEGAL_STATE: Self = Self(401);
    pub const NOT_FOUND: Self = Self(500);
    pub const ILLEGAL_ADDRESS: Self = Self(700);
    pub const LAUNCH_TIMEOUT: Self = Self(702);
    pub const ILLEGAL_INSTRUCTION: Self = Self(715);
    pub const MISALIGNED_ADDRESS: Self = Self(716);
    pub const LAUNCH_FAILED: Self = Self(719);
    pub const COOPERATIVE_LAUNCH_TOO_LARGE: Self = Self(720);
    pub const NOT_SUPPORTED: Self = Self(801);
    pub const CAPTURE_UNSUPPORTED: Self = Self(900);
    pub const CAPTURE_INVALIDATED: Self = Self(901);
    pub const CAPTURE_MERGE: Self = Self(902);
    pub const CAPTURE_UNMATCHED: Self = Self(903);
    pub const CAPTURE_UNJOINED: Self = Self(904);
    pub const CAPTURE_ISOLATION: Self = Self(905);
    pub const CAPTURE_IMPLICIT: Self = Self(906);
    pub const CAPTURED_EVENT: Self = Self(907);
    pub const CAPTURE_WRONG_THREAD: Self = Self(908);
    pub const UNKNOWN: Self = Self(999);
}

/// What a launch with such a fault returns.
pub fn of_fault(kind: Kind) -> Code {
    match kind {
        Kind::OutOfBounds => Code::ILLEGAL_ADDRESS,
        Kind::Misaligned => Code::MISALIGNED_ADDRESS,
        Kind::UnknownInstruction => Code::ILLEGAL_INSTRUCTION,
        Kind::BadLaunch => Code::INVALID_VALUE,
        Kind::TooLong => Code::LAUNCH_TIMEOUT,
        Kind::Uninitialised
        | Kind::SharedRace
        | Kind::GlobalRace
        | Kind::AsyncNotWaited
        | Kind::DivergentBarrier
        | Kind::Deadlock
        | Kind::InactiveLane => Code::LAUNCH_FAILED,
    }
}

/// Name and description of each code.
const TEXTS: &[(i32, &CStr, &CStr)] = &[
    (0, c"CUDA_SUCCESS", c"no error"),
    (1, c"CUDA_ERROR_INVALID_VALUE", c"an argument is not valid"),
    (2, c"CUDA_ERROR_OUT_OF_MEMORY", c"not enough memory"),
    (3, c"CUDA_ERROR_NOT_INITIALIZED", c"cuInit was not called"),
    (101, c"CUDA_ERROR_INVALID_DEVICE", c"no such device"),
    (201, c"CUDA_ERROR_INVALID_CONTEXT", c"no context is current, or not this one"),
    (209, c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"the module is not for this device"),
    (218, c"CUDA_ERROR_INVALID_PTX", c"the PTX does not parse"),
    (222, c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the PTX is newer than the driver"),
    (301, c"CUDA_ERROR_FILE_NOT_FOUND", c"no such file"),
    (400, c"CUDA_ERROR_INVALID_HANDLE", c"a handle is not valid"),
    (401, c"CUDA_ERROR_ILLEGAL_STATE", c"not in this state"),
    (500, c"CUDA_ERROR_NOT_FOUND", c"no such symbol"),
    (700, c"CUDA_ERROR_ILLEGAL_ADDRESS", c"a kernel left the bounds of memory; see standard error"),
    (702, c"CUDA_ERROR_LAUNCH_TIMEOUT", c"a kernel took too many instructions"),
    (715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION", c"a kernel has an instruction that the machine does not know"),
    (716, c"CUDA_ERROR_MISALIGNED_ADDRESS", c"a kernel's access is misaligned; see standard error"),
    (719, c"CUDA_ERROR_LAUNCH_FAILED", c"the machine found a fault in a kernel; see standard error"),
    (720, c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", c"more blocks than the device holds at once"),
    (801, c"CUDA_ERROR_NOT_SUPPORTED", c"the machine does not offer this"),
    (900, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"not permitted while a stream is capturing"),
    (901, c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", c"an earlier error ended the capture"),
    (902, c"CUDA_ERROR_STREAM_CAPTURE_MERGE", c"this would merge two captures"),
    (903, c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", c"the capture did not begin on this stream"),
    (904, c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", c"a forked stream was not joined again"),
    (905, c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", c"this would depend on work outside of the capture"),
    (906, c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", c"the legacy stream would depend on a capture"),
    (907, c"CUDA_ERROR_CAPTURED_EVENT", c"the event was recorded in a capture"),
    (908, c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", c"another thread began this capture"),
    (999, c"CUDA_ERROR_UNKNOWN", c"the machine itself failed"),
];

/// Name and description of a code.
pub fn texts(code: i32) -> Option<(&'static CStr, &'static CStr)> {
    TEXTS.iter().find(|text| text.0 == code).map(|text| (text.1, text.2))
}
