//! The pieces of the command line `molora`, one file or folder for each command.

pub mod bench;
#[cfg(feature = "wgpu")]
pub mod cache;
pub mod contend;
pub mod demo;
pub mod devices;
pub mod encoder;
pub mod engine;
pub mod fetch;
pub mod forms;
pub mod peers;
pub mod picture;
pub mod record;
pub mod retrieve;
pub mod trace;
pub mod train;
pub mod verify;
