//! Stacked experts: what is refused. What is computed stands in `written`.

use crate::files::{Stored, config_with, folder, raw_folder, refused, stored};
use crate::written::{fixture, parameters};
use molora::adapter::{Adapter, ExpertParameter, PeftParameters, read_peft_parameters};
use proptest::prelude::*;
use serde_json::{Value, json};

const OUTER: &str = "base_model.model.layers.0.experts.lora_A.weight";
const INNER: &str = "base_model.model.layers.0.experts.base_layer.lora_A.weight";

/// Rank 2, 3 experts, `[out, in]` = `[8, 6]` and `[6, 4]`, as PEFT from 0.19.1 on writes it.
fn experts() -> Vec<Stored> {
    let b = |name: &str| name.replace("lora_A", "lora_B");
    vec![
        stored(OUTER, &[6, 4]),
        stored(&b(OUTER), &[6, 6]),
        stored(INNER, &[6, 6]),
        stored(&b(INNER), &[8, 6]),
    ]
}

fn config() -> Value {
    let mut config = config_with("target_parameters", json!(["experts.gate_up", "experts.down"]));
    config["target_modules"] = json!(null);
    config["peft_version"] = json!("0.19.1");
    config
}

fn base() -> [ExpertParameter<'static>; 2] {
    let one = |name, in_features, out_features| ExpertParameter {
        name,
        in_features,
        out_features,
        in_first: false,
        is_transposed: false,
    };
    [one("gate_up", 6, 8), one("down", 4, 6)]
}

fn read(
    config: &Value,
    tensors: &[Stored],
    base: &[ExpertParameter],
) -> molora::error::Result<PeftParameters> {
    read_peft_parameters(folder(config, tensors).path(), base)
}

#[test]
fn experts_come_last_in_b_and_the_last_parameter_lies_outside() {
    let (tensors, read) = (experts(), read(&config(), &experts(), &base()).unwrap());
    assert!(read.adapter.modules().is_empty());
    let down = &read.experts["layers.0.experts.down"];
    assert_eq!((down.len(), down[0].in_features(), down[0].out_features(), down[0].rank()), (3, 4, 6, 2));
    let value = |tensor: usize, place: usize| {
        f32::from_le_bytes(tensors[tensor].bytes[4 * place..4 * place + 4].try_into().unwrap())
    };
    for (expert, lora) in down.iter().enumerate() {
        assert!(lora.a().eq((0..8).map(|i| value(0, 8 * expert + i))), "A is [experts, rank, in]");
        assert!(lora.b().eq((0..12).map(|i| value(1, 3 * i + expert))), "B is [out, rank, experts]");
    }
    let gate_up = &read.experts["layers.0.experts.gate_up"];
    assert_eq!((gate_up[2].in_features(), gate_up[2].out_features()), (6, 8));
}

#[test]
fn a_file_that_contradicts_the_base_is_refused_by_name() {
    let swapped = base().map(|p| ExpertParameter { in_first: true, ..p });
    assert_eq!(refused(read(&config(), &experts(), &swapped)), OUTER, "sizes show it");
    let mut others = base();
    others.reverse();
    assert_eq!(refused(read(&config(), &experts(), &others)), INNER, "another order of registration");
    assert_eq!(refused(read(&config(), &experts(), &base()[..1])), INNER, "one parameter, two wrappers");
    assert_eq!(refused(read(&config(), &experts()[..2], &base())), "target_parameters");
    assert_eq!(refused(read(&config(), &experts()[1..], &base())), OUTER.trim_end_matches(".lora_A.weight"));
    assert_eq!(refused(read(&config(), &experts(), &[])), INNER);
    let mut more = config();
    more["target_parameters"] = json!(["experts.gate_up", "experts.down", "experts.bias"]);
    assert_eq!(refused(read(&more, &experts(), &base())), "target_parameters");
    let mut rank = config();
    rank["rank_pattern"] = json!({"down": 4});
    assert_eq!(refused(read(&rank, &experts(), &base())), OUTER, "6 rows are no experts of rank 4");
    let linear = [experts(), crate::files::pair("layers.0.up", 2).to_vec()].concat();
    assert_eq!(refused(read(&config(), &linear, &base())), "layers.0.up", "no target_modules");
}

#[test]
fn versions_whose_rule_is_not_known_are_refused_by_name() {
    let version = |value: Value| {
        let mut config = config();
        config["peft_version"] = value;
        read(&config, &experts(), &base())
    };
    for known in ["0.19.1", "0.20.0", "0.21.2", "1.0.0"] {
        assert!(version(json!(known)).is_ok(), "{known}");
    }
    // Written by these the shapes would be others.
    for old in ["0.17.1", "0.18.1", "0.19.0"] {
        assert_eq!(refused(version(json!(old))), OUTER, "{old}");
    }
    assert_eq!(refused(version(json!(null))), OUTER, "not square: read as before 0.18");
    for odd in ["0.19.1.dev0", "main", "0", ""] {
        assert_eq!(refused(version(json!(odd))), "peft_version", "{odd}");
    }
    assert_eq!(refused(version(json!(19))), "peft_version");
}

/// The square parameter's factors look the same in every version: only the version tells, and without it nothing does.
#[test]
fn a_square_parameter_without_a_version_is_refused() {
    let source = fixture("peft_parameters").join("0.18.1");
    let text = std::fs::read_to_string(source.join("adapter_config.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    std::fs::write(
        folder.path().join("adapter_config.json"),
        text.replace(r#""peft_version": "0.18.1""#, r#""peft_version": null"#),
    )
    .unwrap();
    assert_eq!(refused(read_peft_parameters(folder.path(), &parameters(false, false))), "peft_version");
    let from_peft = Adapter::from_peft(folder.path());
    assert_eq!(refused(from_peft), "target_parameters", "the other door sends it here");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Flips bytes of what PEFT wrote. A change inside the weights may still be a valid file.
    #[test]
    fn corrupted_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_config in any::<bool>(),
        in_first in any::<bool>(),
    ) {
        let source = fixture("peft_parameters").join("0.21.2");
        let [mut config, mut tensors] = ["adapter_config.json", "adapter_model.safetensors"]
            .map(|name| std::fs::read(source.join(name)).unwrap());
        let target = if in_config { &mut config } else { &mut tensors };
        for (place, byte) in changes {
            let place = place.index(target.len());
            target[place] = byte;
        }
        let folder = raw_folder(&config, &tensors);
        if let Ok(read) = read_peft_parameters(folder.path(), &parameters(in_first, false)) {
            for lora in read.experts.values().flatten() {
                prop_assert!(lora.a().chain(lora.b()).all(f32::is_finite) && lora.scaling().is_finite());
            }
        }
    }
}
