//! Files that lie: every one is an error, none a panic or an allocation of what it claims.

use crate::files::{config, raw_folder, refused, serialize, tensors, with_header};
use molora::adapter::{Adapter, read_ming, read_routers};
use proptest::prelude::*;

/// Puts the bytes in every place where a tensor file is read.
fn refused_everywhere(bytes: &[u8]) -> String {
    let folder = raw_folder(config().to_string().as_bytes(), bytes);
    let file = folder.path().join("adapter_model.safetensors");
    let item = refused(Adapter::from_peft(folder.path()));
    assert_eq!(refused(read_ming(folder.path())), item);
    assert_eq!(refused(read_routers(&file)), item);
    item
}

fn read_config(bytes: &[u8]) -> molora::error::Result<Adapter> {
    Adapter::from_peft(raw_folder(bytes, &serialize(&tensors())).path())
}

#[test]
fn every_truncation_is_refused() {
    let whole = serialize(&tensors());
    for length in 0..whole.len() {
        assert_eq!(refused_everywhere(&whole[..length]), "header", "{length} of {} bytes", whole.len());
    }
    assert_eq!(refused_everywhere(&[whole, vec![0]].concat()), "header", "one byte too many");
}

#[test]
fn lying_headers_are_refused() {
    let entry =
        |shape: &str, offsets: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#);
    let two = |first: &str, second: &str| format!(r#"{{"a":{first},"b":{second}}}"#);
    let good = entry("[1,1]", "[0,4]");
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    // Eight tensors whose ends stay below 2^64 until the header's length is added.
    let size = (1u64 << 61) - 1;
    let ends: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    for header in [
        String::new(),
        "[]".into(),
        "null".into(),
        "{".into(),
        r#"{"a":1}"#.into(),
        r#"{"a":{}}"#.into(),
        format!("{{\"a\":{good}}} trailing"),
        format!(r#"{{"a":{}}}"#, entry("[1,1]", "[0,8]")),
        format!(r#"{{"a":{}}}"#, entry("[1,1]", "[4,0]")),
        format!(r#"{{"a":{}}}"#, entry("[1,1]", "[4,8]")),
        format!(r#"{{"a":{}}}"#, entry("[1,1]", "[-4,0]")),
        format!(r#"{{"a":{}}}"#, entry("[1,1]", "[0]")),
        format!(r#"{{"a":{}}}"#, entry("[2,1]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, entry("[1.5,1]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, entry("[-1,1]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967296]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, entry("[4294967296,4294967297]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, entry("[18446744073709551615]", "[0,18446744073709551615]")),
        format!(r#"{{"a":{}}}"#, entry("[99999999999999999999]", "[0,4]")),
        format!(r#"{{"a":{}}}"#, good.replace("F32", "F33")),
        format!(r#"{{"a":{good},"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{good}}}"#),
        format!(r#"{{"__metadata__":{{"x":1}},"a":{good}}}"#),
        two(&good, &good),
        two(&good, &entry("[1,1]", "[2,6]")),
        two(&good, &entry("[1,1]", "[8,12]")),
        format!("{{{}}}", ends.join(",")),
        deep("[", "]"),
        format!(r#"{{"a":{}}}"#, deep(r#"{"a":"#, "}")),
        format!(r#"{{"__metadata__":{}}}"#, deep("[", "]")),
    ] {
        let shown: String = header.chars().take(200).collect();
        assert_eq!(refused_everywhere(&with_header(&header, &[0; 4])), "header", "{shown}");
    }
    let mut invalid = with_header(&format!(r#"{{"a":{good}}}"#), &[0; 4]);
    invalid[10] = 0xff;
    assert_eq!(refused_everywhere(&invalid), "header", "not UTF-8");
}

#[test]
fn lying_header_lengths_are_refused() {
    for length in [1 << 20, 100_000_001, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 8, u64::MAX] {
        let mut bytes = serialize(&tensors());
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(refused_everywhere(&bytes), "header", "{length}");
    }
}

#[test]
fn files_that_are_no_files_are_refused() {
    let folder = raw_folder(config().to_string().as_bytes(), &[]);
    let tensors = folder.path().join("adapter_model.safetensors");
    std::fs::remove_file(&tensors).unwrap();
    assert_eq!(refused(Adapter::from_peft(folder.path())), "file", "missing");
    std::fs::create_dir(&tensors).unwrap();
    assert_eq!(refused(Adapter::from_peft(folder.path())), "file", "a folder");
    assert_eq!(refused(read_ming(folder.path())), "file");
    assert_eq!(refused(read_routers(&tensors)), "file");
    std::fs::remove_dir(&tensors).unwrap();
    // A sparse file: huge by its length, nothing on the disk.
    std::fs::File::create(&tensors).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(refused(Adapter::from_peft(folder.path())), "file", "huge");
    let config = folder.path().join("adapter_config.json");
    std::fs::File::create(&config).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(refused(Adapter::from_peft(folder.path())), "file", "a huge config");
    std::fs::remove_file(&config).unwrap();
    std::fs::create_dir(&config).unwrap();
    assert_eq!(refused(Adapter::from_peft(folder.path())), "file", "a folder as config");
}

#[test]
fn broken_configs_are_refused() {
    let repeated = r#"{"peft_type":"LORA","r":2,"r":4,"lora_alpha":6,"target_modules":["up","down"]}"#;
    let nested = r#"{"peft_type":"LORA","r":2,"lora_alpha":6,"rank_pattern":{"up":2,"up":3}}"#;
    let deep = "[".repeat(1_000_000);
    let deep_value = format!(r#"{{"x":{}}}"#, "[".repeat(1000) + &"]".repeat(1000));
    for config in ["", "{", "[]", "null", "3", "{} {}", "{\"r\":NaN}", repeated, nested, &deep, &deep_value] {
        let shown: String = config.chars().take(80).collect();
        assert_eq!(refused(read_config(config.as_bytes())), "JSON", "{shown}");
    }
    assert_eq!(refused(read_config(b"{\"peft_type\":\"\xff\"}")), "JSON");
    assert_eq!(refused(read_config(b"{}")), "peft_type");
}

#[test]
fn expensive_patterns_are_refused_or_linear() {
    let pattern = |pattern: &str| {
        let mut config = config();
        config["alpha_pattern"] = serde_json::json!({ pattern: 1 });
        read_config(config.to_string().as_bytes())
    };
    assert!(pattern("(a*)*(a*)*b").is_ok());
    assert!(pattern("((a{1000}){1000}){1000}").is_err());
    assert!(pattern(&"(".repeat(100_000)).is_err());
    assert!(pattern(&("(".repeat(100_000) + &")".repeat(100_000))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Flips bytes and cuts the end off. A change inside the weights may still be a valid file.
    #[test]
    fn corrupted_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        in_config in any::<bool>(),
    ) {
        let (mut config, mut tensors) = (config().to_string().into_bytes(), serialize(&tensors()));
        let target = if in_config { &mut config } else { &mut tensors };
        for (place, byte) in changes {
            let place = place.index(target.len());
            target[place] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(target.len());
            target.truncate(length);
        }
        let folder = raw_folder(&config, &tensors);
        if let Ok(adapter) = Adapter::from_peft(folder.path()) {
            for lora in adapter.modules().values() {
                prop_assert!(lora.a().chain(lora.b()).all(f32::is_finite) && lora.scaling().is_finite());
            }
        }
        let _ = read_ming(folder.path());
        let _ = read_routers(&folder.path().join("adapter_model.safetensors"));
    }
}
