//! What a launch did wrong.

use std::fmt;

/// The kinds of faults that the machine reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An address outside of every live allocation, or of the block's shared memory.
    OutOfBounds,
    /// An address that is not a multiple of the access's size.
    Misaligned,
    /// A read of memory that nothing wrote.
    Uninitialised,
    /// Two threads of a block touch the same bytes, one writing, with no barrier between.
    SharedRace,
    /// The same in global memory, between threads or blocks with no synchronisation between.
    GlobalRace,
    /// A touch of the destination of an asynchronous copy before its wait.
    AsyncNotWaited,
    /// A barrier that a part of a warp reached, or barriers that do not match.
    DivergentBarrier,
    /// No thread can go on.
    Deadlock,
    /// A shuffle, vote or matrix operation whose mask names lanes that are not there.
    InactiveLane,
    /// More instructions than the launch may take: an endless loop, most likely.
    TooLong,
    /// An instruction, or a form of one, that the machine does not know.
    UnknownInstruction,
    /// A launch that no device takes: sizes, parameters, shared memory.
    BadLaunch,
}

impl Kind {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfBounds => "out of bounds",
            Self::Misaligned => "misaligned",
            Self::Uninitialised => "uninitialised read",
            Self::SharedRace => "race in shared memory",
            Self::GlobalRace => "race in global memory",
            Self::AsyncNotWaited => "asynchronous copy not waited for",
            Self::DivergentBarrier => "divergent barrier",
            Self::Deadlock => "deadlock",
            Self::InactiveLane => "inactive lane",
            Self::TooLong => "too long",
            Self::UnknownInstruction => "unknown instruction",
            Self::BadLaunch => "bad launch",
        }
    }
}

/// What memory finds wrong with one access of a warp; the executor adds where it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub kind: Kind,
    /// The lane that did it.
    pub lane: u32,
    /// The address, where there is one.
    pub address: Option<u64>,
    /// Details: the other party of a race, the bounds that were left.
    pub detail: String,
}

/// A fault, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub kind: Kind,
    /// The kernel's name.
    pub kernel: String,
    /// The line of the PTX text, from 1; 0 where no line is to blame.
    pub line: u32,
    /// That line's text.
    pub text: String,
    /// Block in the grid.
    pub block: [u32; 3],
    /// Thread in the block.
    pub thread: [u32; 3],
    /// The address, where there is one.
    pub address: Option<u64>,
    /// Details.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: kernel {}, line {} `{}`, block {:?}, thread {:?}",
            self.kind.name(),
            self.kernel,
            self.line,
            self.text,
            self.block,
            self.thread
        )?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

impl std::error::Error for Fault {}
