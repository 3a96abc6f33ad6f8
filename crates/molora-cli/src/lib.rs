//! The pieces of the command line `molora`, one file or folder for each command.

pub mod demo;
pub mod engine;
pub mod fetch;
