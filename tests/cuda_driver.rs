//! Without a driver, with an old one, on an old architecture: an error that says which, in a process of its own, since a
//! driver is looked for once.
#![cfg(feature = "cuda")]

use molora::Cuda;
use std::process::Command;

/// What [`Cuda::new`] says in a process with other variables.
fn opened(ordinal: usize, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env("MOLORA_TEST_ORDINAL", ordinal.to_string());
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("opened: ")).unwrap_or_else(|| panic!("{text}"));
    line.1.to_string()
}

/// Not a test of its own: what [`opened`] starts.
#[test]
fn child() {
    let Ok(ordinal) = std::env::var("MOLORA_TEST_ORDINAL") else { return };
    match Cuda::new(ordinal.parse().unwrap()) {
        Ok(cuda) => println!("opened: {} with {}, {:?}", cuda.describe(), cuda.kernels(), cuda.offer()),
        Err(why) => println!("opened: error: {why}"),
    }
}

#[test]
fn no_driver_is_an_error_and_not_a_panic() {
    let said = opened(0, &[("LD_LIBRARY_PATH", "")]);
    if said.starts_with("error") {
        assert_eq!(said, "error: cuda: expected NVIDIA's driver (libcuda.so.1, nvcuda.dll), found none");
    } else {
        println!("not tested: there is a driver in the system's own folders: {said}");
    }
}

/// Whether the device is the PTX machine, which can play older drivers and devices.
fn is_machine() -> bool {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    let machine = Cuda::new(0).is_ok_and(|cuda| cuda.is_stand_in());
    if !machine {
        println!("not tested: no PTX machine here");
    }
    machine
}

#[test]
fn a_device_that_is_not_there() {
    if Cuda::new(0).is_ok() {
        let said = Cuda::new(1 << 20).unwrap_err().to_string();
        assert!(said.starts_with("cuda: expected a device below "), "{said}");
        assert!(said.ends_with(", got 1048576"), "{said}");
    }
}

#[test]
fn an_old_driver() {
    if is_machine() {
        let said = opened(0, &[("PTX_MACHINE_DRIVER", "10000")]);
        assert!(said.starts_with("error: cuda PTX machine"), "{said}");
        assert!(said.contains("expected a driver of CUDA 1"), "{said}");
        assert!(said.ends_with("or later, got one of 10.0"), "{said}");
    }
}

#[test]
fn an_old_architecture() {
    if is_machine() {
        let said = opened(0, &[("PTX_MACHINE_SM", "70")]);
        assert!(said.ends_with("expected compute capability 7.5 or above, got 7.0"), "{said}");
    }
}

#[test]
fn each_architecture_has_its_kernels() {
    if is_machine() {
        for (sm, kernels, mma_bf16) in
            [("75", "sm_75", false), ("80", "sm_80", true), ("86", "sm_80", true), ("90", "sm_80", true)]
        {
            let said = opened(0, &[("PTX_MACHINE_SM", sm)]);
            assert!(said.contains(&format!("with {kernels}, ")), "{sm}: {said}");
            assert!(said.contains(&format!("mma_f16: true, mma_bf16: {mma_bf16}")), "{sm}: {said}");
        }
    }
}
