//! MING-MOE checkpoints and router files.

use crate::files::{Stored, config, config_with, folder, refused, serialize, stored};
use molora::adapter::{LinearRouter, Ming, read_ming, read_routers};
use safetensors::Dtype;
use serde_json::json;
use std::collections::BTreeMap;

const GATE: &str = "model.layers.0.mlp.gate_proj";
const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn checkpoint(prefix: &str) -> Vec<Stored> {
    let mut tensors = vec![
        stored(&format!("{prefix}{GATE}.switch.weight"), &[3, 5]),
        stored(&format!("{prefix}{GATE}.switch.bias"), &[3]),
        stored(&format!("{prefix}{QUERY}.lora_A.weight"), &[2, 6]),
        stored(&format!("{prefix}{QUERY}.lora_B.weight"), &[7, 2]),
    ];
    for i in 0..3 {
        tensors.push(stored(&format!("{prefix}{GATE}.experts.{i}.lora_A_{i}.weight"), &[2, 5]));
        tensors.push(stored(&format!("{prefix}{GATE}.experts.{i}.lora_B_{i}.weight"), &[4, 2]));
    }
    tensors
}

fn read(tensors: &[Stored]) -> molora::error::Result<Ming> {
    read_ming(folder(&config(), tensors).path())
}

#[test]
fn reads_experts_switch_and_plain_loras() {
    for prefix in ["", "base_model.model."] {
        let tensors = checkpoint(prefix);
        let folder = folder(&config(), &tensors);
        let ming = read_ming(folder.path()).unwrap();
        assert_eq!(read_ming(&folder.path().join("adapter_model.safetensors")).unwrap(), ming);
        assert!(ming.modules.keys().eq([GATE]) && ming.plain.keys().eq([QUERY]));
        let module = &ming.modules[GATE];
        assert_eq!((module.experts.len(), module.shared.as_ref()), (3, None));
        assert_eq!((module.router.weight().len(), module.router.bias().map(<[f32]>::len)), (15, Some(3)));
        for (i, expert) in module.experts.iter().enumerate() {
            assert_eq!(expert.a_bytes(), tensors[4 + 2 * i].bytes);
            assert_eq!(expert.b_bytes(), tensors[5 + 2 * i].bytes);
            assert_eq!((expert.in_features(), expert.out_features(), expert.scaling()), (5, 4, 3.0));
        }
        let query = &ming.plain[QUERY];
        assert_eq!((query.in_features(), query.out_features(), query.rank()), (6, 7, 2));
    }
}

#[test]
fn reads_a_shared_expert_of_several_ranks() {
    let shared = |rank: usize| {
        let name = |factor| format!("{GATE}.share_experts.lora_{factor}.weight");
        [checkpoint(""), vec![stored(&name("A"), &[rank, 5]), stored(&name("B"), &[4, rank])]].concat()
    };
    let ming = read(&shared(4)).unwrap();
    let lora = ming.modules[GATE].shared.clone().unwrap();
    assert_eq!((lora.rank(), lora.scaling()), (4, 3.0), "the scaling of one expert");
    assert_eq!(refused(read(&shared(3))), format!("{GATE}.share_experts"));
}

#[test]
fn a_single_expert_without_a_switch_is_a_plain_lora() {
    let up = "model.layers.0.mlp.up_proj";
    let name = |factor: &str| format!("{up}.experts.0.lora_{factor}_0.weight");
    let single = [stored(&name("A"), &[2, 5]), stored(&name("B"), &[4, 2])];
    let ming = read(&[checkpoint(""), single.to_vec()].concat()).unwrap();
    assert!(ming.modules.keys().eq([GATE]) && ming.plain.keys().eq([up, QUERY]));
    assert_eq!((ming.plain[up].a_bytes(), ming.top_k), (&single[0].bytes[..], None));
    assert_eq!(refused(read(&[checkpoint(""), single[..1].to_vec()].concat())), up);
}

#[test]
fn the_two_stage_form_is_refused() {
    for stage in ["base", "orth"] {
        let name = format!("{GATE}.{stage}.lora_A.weight");
        assert_eq!(refused(read(&[checkpoint(""), vec![stored(&name, &[4, 5])]].concat())), name);
    }
}

#[test]
fn more_than_nine_experts_keep_their_numbers_order() {
    let mut tensors = vec![stored(&format!("{GATE}.switch.weight"), &[12, 5])];
    for i in 0..12 {
        tensors.push(stored(&format!("{GATE}.experts.{i}.lora_A_{i}.weight"), &[2, 5]));
        tensors.push(stored(&format!("{GATE}.experts.{i}.lora_B_{i}.weight"), &[4, 2]));
    }
    let ming = read(&tensors).unwrap();
    assert_eq!(ming.modules[GATE].router.bias(), None);
    for (i, expert) in ming.modules[GATE].experts.iter().enumerate() {
        assert_eq!(expert.a_bytes(), tensors[1 + 2 * i].bytes, "expert {i}");
    }
}

#[test]
fn broken_checkpoints_are_refused_by_name() {
    let without = |part: &str| {
        let tensors: Vec<Stored> = checkpoint("").into_iter().filter(|t| !t.name.contains(part)).collect();
        refused(read(&tensors))
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors: Vec<Stored> = checkpoint("").into_iter().filter(|t| t.name != name).collect();
        tensors.push(stored(name, shape));
        refused(read(&tensors))
    };
    let name = |rest: &str| format!("{GATE}.{rest}");
    assert_eq!(without("switch.weight"), name("switch.weight"));
    assert_eq!(without(".experts."), name("experts.0"));
    assert_eq!(without("experts.1"), name("experts.1"));
    assert_eq!(without("lora_B_2"), name("experts.2"));
    assert_eq!(without("q_proj.lora_A"), QUERY);
    assert_eq!(without("mlp"), "tensors");
    for (part, shape) in [
        ("switch.weight", &[3, 6][..]),
        ("switch.weight", &[3]),
        ("switch.other", &[3]),
        ("experts.1.lora_A_1.weight", &[3, 5]),
        ("experts.1.lora_A_2.weight", &[2, 5]),
        ("experts.01.lora_A_01.weight", &[2, 5]),
        ("experts.+1.lora_A_+1.weight", &[2, 5]),
        ("experts.99999999999999999999.lora_A_99999999999999999999.weight", &[2, 5]),
        ("experts.1.lora_C_1.weight", &[2, 5]),
        ("experts.1.lora_A_1.bias", &[2, 5]),
        ("other", &[2]),
    ] {
        assert_eq!(with(&name(part), shape), name(part), "{part}");
    }
    assert_eq!(with(&name("switch.bias"), &[4]), name("switch.bias"));
    assert_eq!(with(&name("switch.weight"), &[4, 5]), name("switch.bias"), "the bias has 3");
    assert_eq!(with(&name("experts.7.lora_A_7.weight"), &[2, 5]), name("experts.3"));
    assert_eq!(with(&name("experts.2.lora_B_2.weight"), &[9, 2]), name("experts.2"));
    assert_eq!(with(&format!("base_model.model.{GATE}.switch.bias"), &[3]), name("switch.bias"), "twice");
    let attention = "model.layers.0.self_attn.q_proj.switch.weight";
    assert_eq!(with(attention, &[3, 6]), attention);
    let rows: Vec<Stored> = checkpoint("").into_iter().filter(|t| !t.name.contains("switch")).collect();
    let rows = [rows, vec![stored(&name("switch.weight"), &[4, 5])]].concat();
    assert_eq!(refused(read(&rows)), name("switch.weight"), "4 rows, 3 experts");
    let config = config_with("use_dora", json!(true));
    assert_eq!(refused(read_ming(folder(&config, &checkpoint("")).path())), "use_dora");
}

fn routers(tensors: &[Stored]) -> molora::error::Result<BTreeMap<(usize, String), LinearRouter>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routers.safetensors");
    std::fs::write(&file, serialize(tensors)).unwrap();
    read_routers(&file)
}

#[test]
fn reads_routers() {
    let read = routers(&[
        stored("layers.24.gate_proj.router.weight", &[5, 3]),
        stored("layers.24.gate_proj.router.bias", &[5]),
        stored("layers.3.down_proj.router.weight", &[2, 4]),
    ])
    .unwrap();
    assert!(read.keys().eq([&(3, "down_proj".to_owned()), &(24, "gate_proj".to_owned())]));
    let gate = &read[&(24, "gate_proj".to_owned())];
    assert_eq!((gate.experts(), gate.in_features(), gate.weight().len()), (5, 3, 15));
    assert_eq!(gate.bias().unwrap().len(), 5);
    assert_eq!(read[&(3, "down_proj".to_owned())].bias(), None);
}

#[test]
fn broken_routers_are_refused_by_name() {
    let name = "layers.1.up_proj.router.weight";
    for other in [
        "layers.1.q_proj.router.weight",
        "layers.01.up_proj.router.weight",
        "layers.up_proj.router.weight",
        "layers.1.up_proj.router",
        "layers.1.up_proj.weight",
        "model.layers.1.up_proj.router.weight",
    ] {
        assert_eq!(refused(routers(&[stored(name, &[2, 3]), stored(other, &[2, 3])])), other);
    }
    let bias = "layers.1.up_proj.router.bias";
    assert_eq!(refused(routers(&[stored(bias, &[2])])), name);
    assert_eq!(refused(routers(&[stored(name, &[2, 3]), stored(bias, &[3])])), bias);
    assert_eq!(refused(routers(&[stored(name, &[2, 3]), stored(bias, &[2, 1])])), bias);
    assert_eq!(refused(routers(&[stored(name, &[6])])), name);
    assert_eq!(refused(routers(&[stored(name, &[0, 3])])), name);
    assert_eq!(refused(routers(&[])), "tensors");
    let mut nan = stored(name, &[1, 1]);
    nan.bytes = f32::NAN.to_le_bytes().to_vec();
    assert_eq!(refused(routers(&[nan])), name);
    let mut integer = stored(name, &[1, 1]);
    integer.dtype = Dtype::I32;
    assert_eq!(refused(routers(&[integer])), name);
}
