//! One operation is one room: the same stem in five folders.

use std::path::Path;

const ROOMS: [&str; 8] = ["route", "plan", "shrink", "attend", "expand", "base", "fused", "grouped"];

fn exists(path: &str) -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).is_file()
}

#[test]
fn every_room_is_complete() {
    let file = |room: &str| {
        [("src/ops", "rs"), ("shaders", "wgsl"), ("tests", "rs"), ("benches", "rs")]
            .map(|(folder, extension)| format!("{folder}/{room}.{extension}"))
    };
    let missing: Vec<String> =
        ROOMS.iter().flat_map(|room| file(room)).filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "missing: {}", missing.join(", "));
}

#[test]
fn every_room_has_its_cuda_kernel() {
    let kernels = ROOMS.map(|room| format!("kernels/{room}.cu"));
    let missing: Vec<&String> = kernels.iter().filter(|path| !exists(path)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
}

/// An operation that nobody entered above is an incomplete room too.
#[test]
fn every_operation_is_a_room() {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    for entry in std::fs::read_dir(ops).expect("src/ops is there") {
        let path = entry.expect("readable").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(stem == "mod" || ROOMS.contains(&stem.as_str()), "{stem} is not in the list of rooms");
    }
}
