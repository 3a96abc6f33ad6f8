//! PHATGOOSE checkpoints: what is refused. What is computed stands in `written`.

use crate::files::{Stored, refused, serialize, stored};
use molora::adapter::{PhatgooseModule, read_phatgoose};
use safetensors::Dtype;
use std::collections::BTreeMap;

const Q: &str = "encoder.block.0.layer.0.SelfAttention.q";

fn name(part: &str) -> String {
    format!("{Q}._addons.{part}")
}

fn checkpoint() -> Vec<Stored> {
    let expert = |i: usize| {
        [
            stored(&name(&format!("expert_lora.layer1__{i}")), &[5, 2]),
            stored(&name(&format!("expert_lora.layer2__{i}")), &[2, 3]),
            stored(&name(&format!("router.expert_embeddings__{i}")), &[5]),
        ]
    };
    [expert(0), expert(1)].concat()
}

fn read(tensors: &[Stored]) -> molora::error::Result<BTreeMap<String, PhatgooseModule>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_best.safetensors");
    std::fs::write(&file, serialize(tensors)).unwrap();
    read_phatgoose(&file)
}

#[test]
fn both_factors_are_transposed_on_disk() {
    let tensors = checkpoint();
    let modules = read(&tensors).unwrap();
    assert!(modules.keys().eq([Q]));
    let module = &modules[Q];
    let value = |tensor: usize, place: usize| {
        f32::from_le_bytes(tensors[tensor].bytes[4 * place..4 * place + 4].try_into().unwrap())
    };
    let lora = &module.experts[1];
    assert_eq!((lora.in_features(), lora.out_features(), lora.rank(), lora.scaling()), (5, 3, 2, 0.5));
    assert!(lora.a().eq((0..2).flat_map(|r| (0..5).map(move |i| (r, i))).map(|(r, i)| value(3, 2 * i + r))));
    assert!(lora.b().eq((0..3).flat_map(|o| (0..2).map(move |r| (o, r))).map(|(o, r)| value(4, 3 * r + o))));
    assert_eq!(module.gates[1], (0..5).map(|i| value(5, i)).collect::<Vec<_>>());
}

#[test]
fn more_than_nine_experts_keep_their_numbers_order() {
    let mut tensors = Vec::new();
    for i in 0..11 {
        tensors.push(stored(&name(&format!("expert_lora.layer1__{i}")), &[5, 1 + i]));
        tensors.push(stored(&name(&format!("expert_lora.layer2__{i}")), &[1 + i, 3]));
        tensors.push(stored(&name(&format!("router.expert_embeddings__{i}")), &[5]));
    }
    let module = &read(&tensors).unwrap()[Q];
    assert!(module.experts.iter().map(|lora| lora.rank()).eq(1..12), "ranks may differ");
}

#[test]
fn the_bases_embedding_is_passed_over_and_nothing_else() {
    let embedding = |stack: &str| stored(&format!("{stack}.embed_tokens.weight"), &[7, 5]);
    let tensors = [checkpoint(), vec![embedding("encoder"), embedding("decoder")]].concat();
    assert_eq!(read(&tensors).unwrap().len(), 1);
    for other in [
        "shared.weight".to_owned(),
        format!("{Q}.weight"),
        format!("{Q}.expert_lora_a"),
        name("expert_lora.layer1_0"),
        name("expert_lora.layer1_stem_0"),
        name("expert_lora.layer1__01"),
        name("expert_lora.layer3__0"),
        name("expert_lora.expert_output_gate"),
        name("expert_lora.output_layer_norm_weight__0"),
        name("router.weights"),
        name("router.expert_embeddings__-1"),
    ] {
        let tensors = [checkpoint(), vec![stored(&other, &[5])]].concat();
        assert_eq!(refused(read(&tensors)), other);
    }
}

#[test]
fn checkpoints_that_do_not_fit_are_refused_by_name() {
    let without = |part: &str| {
        let tensors: Vec<Stored> = checkpoint().into_iter().filter(|t| !t.name.contains(part)).collect();
        refused(read(&tensors))
    };
    let with = |part: &str, shape: &[usize]| {
        let part = name(part);
        let mut tensors: Vec<Stored> = checkpoint().into_iter().filter(|t| t.name != part).collect();
        tensors.push(stored(&part, shape));
        read(&tensors)
    };
    assert_eq!(without("__0"), name("expert_lora.layer1__0"), "a gap");
    for part in ["expert_lora.layer1__1", "expert_lora.layer2__1", "router.expert_embeddings__1"] {
        assert_eq!(without(part), name(part));
    }
    assert_eq!(refused(read(&[])), "tensors");
    for (part, shape) in [
        ("expert_lora.layer1__1", &[5, 2, 1][..]),
        ("expert_lora.layer1__1", &[6, 2]),
        ("expert_lora.layer2__1", &[3, 3]),
        ("expert_lora.layer2__1", &[2, 4]),
        ("router.expert_embeddings__1", &[4]),
        ("router.expert_embeddings__1", &[5, 1]),
    ] {
        let named = match (part, shape) {
            // A larger input shows at the gate, another output beside the first expert.
            ("expert_lora.layer1__1", [6, 2]) => "router.expert_embeddings__1",
            ("expert_lora.layer2__1", [2, 4]) => "expert_lora.layer1__1",
            _ => part,
        };
        assert_eq!(refused(with(part, shape)), name(named), "{part} {shape:?}");
    }
    let mut half = checkpoint();
    (half[1].dtype, half[1].bytes) = (Dtype::F16, vec![0; half[1].bytes.len() / 2]);
    assert_eq!(refused(read(&half)), name("expert_lora.layer2__0"));
    let mut nan = checkpoint();
    nan[2].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(refused(read(&nan)), name("router.expert_embeddings__0"));
}

#[test]
fn an_input_gate_is_the_only_experts_gate() {
    let single: Vec<Stored> = checkpoint()
        .into_iter()
        .filter(|t| t.name.ends_with("__0") && t.name.contains("expert_lora"))
        .collect();
    let gate = stored(&name("expert_lora.expert_input_gate"), &[5]);
    let module = &read(&[single.clone(), vec![gate.clone()]].concat()).unwrap()[Q];
    assert_eq!(module.gates[0][0], f32::from_le_bytes(gate.bytes[..4].try_into().unwrap()));
    let mut copy = gate.clone();
    copy.name = name("router.expert_embeddings__0");
    assert!(read(&[single.clone(), vec![gate.clone(), copy.clone()]].concat()).is_ok());
    copy.bytes[0] ^= 1;
    assert_eq!(refused(read(&[single, vec![gate.clone(), copy]].concat())), gate.name, "two gates");
    assert_eq!(refused(read(&[checkpoint(), vec![gate.clone()]].concat())), gate.name, "two experts");
}

/// `use_input_gate_in_router_and_expert` puts the gate before the ranks: as a rank it would compute something else.
#[test]
fn a_gate_among_the_ranks_is_refused() {
    let mut tensors = checkpoint();
    let gate = tensors[2].bytes.clone();
    for (row, value) in gate.chunks_exact(4).enumerate() {
        tensors[0].bytes[8 * row..8 * row + 4].copy_from_slice(value);
    }
    assert!(read(&tensors).is_ok(), "B's first row is not zero");
    tensors[1].bytes[..12].fill(0);
    assert_eq!(refused(read(&tensors)), name("expert_lora.layer1__0"));
}
