//! What vendors' compilers make of molora's WebGPU pipelines, without their GPUs: Mesa's drivers over stand-ins for the
//! kernel's. Held to a committed table.

#[cfg(target_os = "linux")]
mod figures;
#[cfg(target_os = "linux")]
mod gate;
#[cfg(target_os = "linux")]
mod gpu;
#[cfg(target_os = "linux")]
mod hook;
#[cfg(target_os = "linux")]
mod list;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod self_test;
#[cfg(target_os = "linux")]
mod table;

#[cfg(target_os = "linux")]
fn main() {
    if let Err(error) = run::main() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("Mesa's drivers over stand-ins run on Linux only");
    std::process::exit(1);
}
