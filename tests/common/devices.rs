//! The devices of a test with host memory in and out.
#![allow(dead_code, reason = "every test file takes its part")]

use molora::host::Device;

/// Every device that the machine has and `MOLORA_DEVICE` asks for; fails where `MOLORA_REQUIRE` names one that is not there.
pub fn devices() -> Vec<Device> {
    let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    let mut devices = Vec::new();
    for subject in subjects {
        match subject.kind() {
            #[cfg(feature = "wgpu")]
            "wgpu" => {
                let all = molora::Wgpu::adapters();
                let mut adapters = all.iter().filter_map(|a| molora::Wgpu::open(a).ok());
                let own =
                    adapters.find(|wgpu| wgpu.describe() == subject.name().trim_start_matches("wgpu: "));
                devices.extend(own.map(Device::Wgpu));
            }
            kind => devices.push(Device::by_name(kind).unwrap()),
        }
    }
    devices
}

/// The device with one form for every batch size; the CPU has no other.
pub fn batch_invariant(device: &Device) -> Device {
    match device {
        #[cfg(feature = "wgpu")]
        Device::Wgpu(wgpu) => Device::Wgpu(wgpu.batch_invariant(true)),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => Device::Cuda(cuda.batch_invariant(true)),
        cpu => cpu.clone(),
    }
}
