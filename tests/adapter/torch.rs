//! Files of `torch.save` that lie: every one is an error, none a panic or an allocation of what it claims.

use crate::files::refused;
use crate::written::fixture;
use molora::adapter::{read_ming, read_phatgoose};
use molora::error::Result;
use proptest::prelude::*;
use std::path::Path;

fn task() -> Vec<u8> {
    std::fs::read(fixture("phatgoose").join("task.pt")).unwrap()
}

fn read(bytes: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_task.pt");
    std::fs::write(&file, bytes).unwrap();
    read_phatgoose(&file).map(drop)
}

/// The same bytes with one part replaced by another of its length.
fn with(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let place = bytes.windows(from.len()).position(|window| window == from).expect("the part is there");
    let mut changed = bytes.to_vec();
    changed[place..place + to.len()].copy_from_slice(to);
    changed
}

#[test]
fn every_truncation_is_refused() {
    let whole = task();
    assert!(read(&whole).is_ok());
    for length in 0..whole.len() {
        assert_eq!(refused(read(&whole[..length])), "header", "{length} of {} bytes", whole.len());
    }
}

#[test]
fn calls_other_than_a_tensors_are_refused() {
    // The first call of the program makes the dictionary.
    let changed = with(&task(), b"ccollections\nOrderedDict\n", b"cos\nsystemsystemsystemsy\n");
    let Err(error) = read(&changed) else { panic!("accepted") };
    let said = error.to_string();
    assert!(said.contains("data.pkl") && said.contains("os.systemsystem"), "{said}");
    let changed = with(&task(), b"_rebuild_tensor_v2", b"_rebuild_tensor_v9");
    assert_eq!(refused(read(&changed)), "data.pkl");
}

#[test]
fn other_element_types_and_views_outside_are_refused_by_name() {
    let changed = with(&task(), b"ctorch\nFloatStorage\n", b"ctorch\nQuintStorage\n");
    assert!(refused(read(&changed)).contains("expert"));
    // The offset of the first tensor, [5, 10] of 50: `K\0` before the shape `K\x05K\x0a`.
    let changed = with(&task(), b"QK\x00K\x05K\x0a", b"QK\x01K\x05K\x0a");
    assert_eq!(refused(read(&changed)), "encoder.embed_tokens.weight");
    // The strides (1, 10) of a transposed A [10, 4] to (0, 10): every row the same.
    let place = b"K\x0aK\x04\x86q";
    let bytes = task();
    let at = bytes.windows(place.len()).position(|window| window == place).unwrap();
    let strides = at + bytes[at..].windows(4).position(|window| window == b"K\x01K\x0a").unwrap();
    let mut changed = bytes;
    changed[strides + 1] = 0;
    assert!(refused(read(&changed)).contains("layer1__0"));
}

#[test]
fn big_endian_archives_are_refused() {
    assert_eq!(refused(read(&with(&task(), b"little", b"biggie"))), "byteorder");
}

fn ming_with(bytes: &[u8]) -> (tempfile::TempDir, Result<()>) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors", "config.json"] {
        std::fs::copy(fixture("ming").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("non_lora_trainables.bin"), bytes).unwrap();
    let read = read_ming(folder.path()).map(drop);
    (folder, read)
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

/// The item and the file that an error names.
fn said(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_ming_config_that_contradicts_the_experts_is_refused() {
    let whole = std::fs::read(fixture("ming").join("non_lora_trainables.bin")).unwrap();
    let (folder, read) = ming_with(&whole);
    assert!(read.is_ok());
    let config = folder.path().join("config.json");
    for (from, to, item) in [
        (r#""num_experts": 3"#, r#""num_experts": 4"#, "experts"),
        (r#""num_experts": 4"#, r#""num_experts": null"#, ""),
        (r#""num_experts_per_token": 2"#, r#""num_experts_per_token": 5"#, "experts"),
        (r#""num_experts_per_token": 5"#, r#""num_experts_per_token": 0"#, "num_experts_per_token"),
        (r#""expert_selection": "top_k""#, r#""expert_selection": "sampling""#, "expert_selection"),
    ] {
        replace(&config, from, to);
        if item.is_empty() {
            assert!(read_ming(folder.path()).is_ok(), "{to}");
        } else {
            assert!(said(read_ming(folder.path())).contains(item), "{to}");
        }
    }
    std::fs::remove_file(&config).unwrap();
    assert_eq!(read_ming(folder.path()).unwrap().top_k, None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Flips bytes and cuts the end off. A change inside the weights may still be a valid file.
    #[test]
    fn corrupted_archives_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        in_program in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = task();
        let program = if in_program { 1200 } else { bytes.len() };
        for (place, byte) in changes {
            let place = place.index(program);
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = read(&bytes);
        let _ = ming_with(&bytes);
    }
}
