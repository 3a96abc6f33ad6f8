//! PTX text to a [`Module`], decoded once to enums.
//!
//! [`lexer`] makes tokens, [`parse`] statements of them, [`allocate`] gives registers places in a warp's register file, and
//! [`decode`] turns each statement into one [`op::Ins`], so that a program counter is the index of a statement. What is not
//! known becomes [`op::Op::Unknown`] and is a fault only when it is executed.

mod allocate;
mod decode;
mod decode_alu;
mod decode_convert;
mod decode_memory;
mod decode_warp;
mod kinds;
mod lexer;
pub mod op;
mod operands;
mod parse;

use std::collections::BTreeMap;
use std::fmt;

/// Text that is no PTX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

/// A parsed module.
#[derive(Debug, Clone)]
pub struct Module {
    /// `.version`, such as 7.0.
    pub version: String,
    /// `.target`, such as `sm_80`.
    pub target: String,
    /// Kernels by name.
    pub kernels: BTreeMap<String, Kernel>,
    /// Contents of `.const` and of initialised `.global` variables; execution only reads them.
    pub constants: Vec<u8>,
    /// The text's lines, for faults.
    pub lines: Vec<String>,
}

impl Module {
    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels' names, sorted.
    pub fn kernel_names(&self) -> impl Iterator<Item = &str> {
        self.kernels.keys().map(String::as_str)
    }

    /// The text of a line, from 1.
    pub fn line(&self, line: u32) -> &str {
        let index = (line as usize).wrapping_sub(1);
        self.lines.get(index).map_or("", |text| text.trim())
    }
}

/// A kernel's parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name in the text.
    pub name: String,
    /// Where it begins among the parameters' bytes.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
    /// Its alignment.
    pub align: u32,
}

/// A kernel, decoded.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// The line of its `.entry`.
    pub line: u32,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Bytes of all parameters.
    pub param_bytes: u32,
    /// Bytes of its static shared variables.
    pub static_shared_bytes: u32,
    /// Where dynamic shared memory begins.
    pub dynamic_shared_at: u32,
    /// Does it name an `extern` shared array?
    pub uses_dynamic_shared: bool,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// `.maxntid`: most threads of a block.
    pub max_threads: Option<u32>,
    /// `.reqntid`: the block's only size.
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// Instructions; the last is an exit.
    pub code: Vec<op::Ins>,
    /// For each instruction, its name in counters.
    pub names: Vec<String>,
    /// Places in a warp's register file, and what stands there from the start.
    pub file: op::File,
    /// Instructions that the decoder does not know: line and why.
    pub unknown: Vec<(u32, String)>,
}

/// Parses and decodes a module.
pub fn parse(text: &str) -> Result<Module, ParseError> {
    parse::module(text)
}
