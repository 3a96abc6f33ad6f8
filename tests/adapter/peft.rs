//! PEFT folders.

use crate::files::{
    Stored, bf16_bytes, config, config_with, f16_bytes, f32_bytes, folder, pair, refused, tensors,
};
use half::{bf16, f16};
use molora::adapter::Adapter;
use molora::element::ElementType;
use safetensors::Dtype;
use serde_json::{Value, json};

fn read(config: &Value, tensors: &[Stored]) -> molora::error::Result<Adapter> {
    Adapter::from_peft(folder(config, tensors).path())
}

fn scaling(config: &Value, tensors: &[Stored], module: &str) -> f32 {
    read(config, tensors).unwrap().get(module).unwrap().scaling()
}

#[test]
fn reads_what_was_written() {
    let (stored, folder) = (tensors(), folder(&config(), &tensors()));
    let adapter = Adapter::from_peft(folder.path()).unwrap();
    assert_eq!(adapter.name(), folder.path().file_name().unwrap().to_str().unwrap());
    assert!(adapter.modules().keys().eq(["layers.0.down", "layers.0.up"]));
    let up = adapter.get("layers.0.up").unwrap();
    assert_eq!((up.in_features(), up.out_features(), up.rank(), up.scaling()), (3, 4, 2, 3.0));
    assert_eq!(
        (up.element(), up.a_bytes(), up.b_bytes()),
        (ElementType::F32, &stored[0].bytes[..], &stored[1].bytes[..])
    );
    let down = adapter.get("layers.0.down").unwrap();
    assert_eq!((down.a_bytes(), down.b_bytes()), (&stored[2].bytes[..], &stored[3].bytes[..]));
    assert_eq!(adapter.get("layers.0.gate"), None);
}

#[test]
fn reads_every_element_type() {
    let values = [0.5, -1.25, 3.0, 0.0, 7.5, -0.125, 1.0, 2.0].map(f16::from_f32);
    let stored = |dtype, bytes: Vec<u8>| {
        let [mut a, mut b] = pair("up", 2);
        (a.dtype, b.dtype, a.bytes, b.bytes) = (dtype, dtype, bytes[..6 * bytes.len() / 8].to_vec(), bytes);
        read(&config_with("target_modules", json!(["up"])), &[a, b]).unwrap().get("up").unwrap().clone()
    };
    let wide = values.map(f16::to_f32);
    for (lora, element) in [
        (stored(Dtype::F16, f16_bytes(&values)), ElementType::F16),
        (stored(Dtype::BF16, bf16_bytes(&wide.map(bf16::from_f32))), ElementType::Bf16),
        (stored(Dtype::F32, f32_bytes(&wide)), ElementType::F32),
    ] {
        assert_eq!(lora.element(), element);
        assert!(lora.a().eq(wide[..6].iter().copied()) && lora.b().eq(wide), "{element}");
    }
}

#[test]
fn accepts_the_default_adapter_name_in_tensor_names() {
    let mut stored = tensors();
    stored[0].name = stored[0].name.replace(".weight", ".default.weight");
    assert_eq!(read(&config(), &stored).unwrap().modules().len(), 2);
    stored.push(tensors().remove(0));
    assert_eq!(refused(read(&config(), &stored)), "base_model.model.layers.0.up.lora_A.weight");
}

#[test]
fn scaling_follows_alpha_rank_and_patterns() {
    let up = "layers.0.up";
    assert_eq!(scaling(&config(), &tensors(), up), 3.0);
    assert_eq!(scaling(&config_with("lora_alpha", json!(1.5)), &tensors(), up), 0.75);
    assert_eq!(scaling(&config_with("lora_alpha", json!(0)), &tensors(), up), 0.0);
    assert_eq!(scaling(&config_with("use_rslora", json!(true)), &tensors(), up), (6.0 / 2f64.sqrt()) as f32);
    let alpha = |pattern| scaling(&config_with("alpha_pattern", pattern), &tensors(), up);
    assert_eq!(alpha(json!({"up": 8})), 4.0);
    assert_eq!(alpha(json!({"layers.0.up": 8})), 4.0);
    assert_eq!(alpha(json!({"0.up": 8})), 4.0);
    assert_eq!(alpha(json!({"p": 8})), 3.0, "not a whole part of the path");
    assert_eq!(alpha(json!({"layers.0": 8})), 3.0, "not the path's end");
    assert_eq!(alpha(json!({r"layers\.\d+\.(up|gate)": 8})), 4.0);
    assert_eq!(alpha(json!({"down|up": 8})), 4.0);
    assert_eq!(alpha(json!({"^up": 8})), 3.0);
    assert_eq!(alpha(json!({"^layers.0.up": 8})), 4.0);
}

#[test]
fn the_first_pattern_in_the_file_wins() {
    for (pattern, want) in [(r#"{"up": 8, ".*": 10}"#, 4.0), (r#"{".*": 10, "up": 8}"#, 5.0)] {
        let text =
            config().to_string().replace(r#""alpha_pattern":{}"#, &format!(r#""alpha_pattern":{pattern}"#));
        let folder = crate::files::raw_folder(text.as_bytes(), &crate::files::serialize(&tensors()));
        assert_eq!(Adapter::from_peft(folder.path()).unwrap().get("layers.0.up").unwrap().scaling(), want);
    }
}

#[test]
fn rank_pattern_sets_rank_and_scaling() {
    let stored = [pair("layers.0.up", 3), pair("layers.0.down", 2)].concat();
    assert_eq!(refused(read(&config(), &stored)), "base_model.model.layers.0.up.lora_A.weight");
    let mut config = config_with("rank_pattern", json!({"up": 3}));
    let adapter = read(&config, &stored).unwrap();
    assert_eq!(
        (adapter.get("layers.0.up").unwrap().rank(), adapter.get("layers.0.down").unwrap().rank()),
        (3, 2)
    );
    assert_eq!(scaling(&config, &stored, "layers.0.up"), 2.0);
    assert_eq!(scaling(&config, &stored, "layers.0.down"), 3.0);
    config["use_rslora"] = json!(true);
    config["alpha_pattern"] = json!({"up": 12});
    assert_eq!(scaling(&config, &stored, "layers.0.up"), (12.0 / 3f64.sqrt()) as f32);
    assert_eq!(scaling(&config, &stored, "layers.0.down"), (6.0 / 2f64.sqrt()) as f32);
}

/// Configs before 0.18 do not say which PEFT wrote them, and three rules were in use.
#[test]
fn patterns_that_older_versions_read_otherwise_need_a_version() {
    let stored = [pair("layers.0.up", 3), pair("layers.0.down", 2)].concat();
    let scaling = |rank: Value, alpha: Value, version: Value| {
        let mut config = config_with("rank_pattern", rank);
        config["alpha_pattern"] = alpha;
        config["peft_version"] = version;
        read(&config, &stored).map(|adapter| adapter.get("layers.0.up").unwrap().scaling())
    };
    let up = || json!({"up": 3});
    for (alpha, want) in [
        (json!({}), 2.0),
        (json!({"up": 12}), 4.0),
        (json!({"layers.0.up": 12}), 4.0),
        (json!({r".*\.(up|gate)": 12}), 4.0),
        (json!({"gate|up": 12}), 4.0),
        (json!({"^layers.0.up": 12}), 4.0),
    ] {
        assert_eq!(scaling(up(), alpha.clone(), json!("0.18.0")).unwrap(), want, "{alpha}");
        // Only where both have one key, or one of them none, did all versions agree.
        let agreed = alpha == json!({}) || alpha == json!({"up": 12});
        match scaling(up(), alpha.clone(), json!(null)) {
            Ok(got) => assert!(agreed && got == want, "{alpha}: {got}"),
            refusal => assert!(refused(refusal) == "peft_version" && !agreed, "{alpha}"),
        }
    }
    // Alone, a key may be the whole path; alternatives without brackets and anchors were read otherwise.
    let same = || json!({"layers.0.up": 3});
    assert_eq!(scaling(same(), json!({"layers.0.up": 12}), json!(null)).unwrap(), 4.0);
    assert_eq!(refused(scaling(json!({"gate|up": 3}), json!({}), json!(null))), "peft_version");
}

#[test]
fn target_modules_select_as_peft_does() {
    let select = |targets: Value| read(&config_with("target_modules", targets), &tensors());
    for targets in [
        json!(["up", "down"]),
        json!(["layers.0.up", "0.down"]),
        json!("all-linear"),
        json!(r".*\.(up|down)"),
        json!(r"layers\.0\.(?:up|down)"),
    ] {
        assert_eq!(select(targets.clone()).unwrap().modules().len(), 2, "{targets}");
    }
    assert_eq!(refused(select(json!(["up", "down", "gate"]))), "target_modules");
    assert_eq!(refused(select(json!(null))), "target_modules");
    assert_eq!(refused(select(json!(["up"]))), "layers.0.down", "PEFT would skip it");
    assert_eq!(refused(select(json!("up|down"))), "layers.0.down", "a pattern has to match the whole path");
    assert_eq!(refused(select(json!("("))), "target_modules");
    assert_eq!(refused(select(json!("(?!x)up"))), "target_modules");
    assert_eq!(refused(select(json!([1]))), "target_modules");
    assert_eq!(refused(read(&config_with("exclude_modules", json!(["up"])), &tensors())), "layers.0.up");
    assert_eq!(
        read(&config_with("exclude_modules", json!(["gate"])), &tensors()).unwrap().modules().len(),
        2
    );
}

#[test]
fn layers_to_transform_select_as_peft_does() {
    let stored = [pair("model.layers.24.up", 2), pair("model.layers.25.down", 2)].concat();
    let select = |key: &str, layers: Value, pattern: Value| {
        let mut config = config_with(key, layers);
        config["layers_pattern"] = pattern;
        read(&config, &stored)
    };
    let layers = |layers, pattern| select("layers_to_transform", layers, pattern);
    for pattern in [json!(null), json!("layers"), json!(["blocks", "layers"]), json!([])] {
        assert_eq!(layers(json!([24, 25]), pattern).unwrap().modules().len(), 2);
    }
    assert_eq!(layers(json!([]), json!(null)).unwrap().modules().len(), 2);
    assert_eq!(refused(layers(json!([24]), json!(null))), "model.layers.25.down");
    assert_eq!(refused(layers(json!(25), json!(null))), "model.layers.24.up");
    assert_eq!(
        refused(layers(json!([24, 25, 26]), json!(null))),
        "layers_to_transform",
        "layer 26 is not there"
    );
    assert_eq!(refused(layers(json!([24, 25]), json!("blocks"))), "layers_to_transform");
    assert_eq!(refused(layers(json!([-1]), json!(null))), "layers_to_transform");
    assert_eq!(refused(layers(json!(null), json!("layers"))), "layers_to_transform");
    let mut config = config_with("layers_to_transform", json!([24, 25]));
    config["target_modules"] = json!("all-linear");
    assert_eq!(refused(read(&config, &stored)), "target_modules");
}

#[test]
fn options_that_change_the_result_are_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("megatron_config", json!({"a": 1})),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("eva_config", json!({"rho": 2.0})),
        ("corda_config", json!({"corda_method": "ipm"})),
        ("lora_ga_config", json!({"scale": "stable"})),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("alora_invocation_tokens", json!([1])),
        ("ensure_weight_tying", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("something_new", json!(1)),
        ("something_new", json!("on")),
        ("peft_type", json!("LOHA")),
        ("peft_type", json!(null)),
        ("r", json!(0)),
        ("r", json!(-2)),
        ("r", json!(1.5)),
        ("r", json!("2")),
        ("r", json!(1e300)),
        ("r", json!(null)),
        ("lora_alpha", json!("6")),
        ("lora_alpha", json!(null)),
        ("lora_alpha", json!(1e300)),
        ("use_rslora", json!("yes")),
        ("rank_pattern", json!(["up"])),
        ("alpha_pattern", json!(1)),
        ("layers_pattern", json!(1)),
    ] {
        assert_eq!(refused(read(&config_with(key, value.clone()), &tensors())), key, "{value}");
    }
    for (key, pattern, item) in [
        ("rank_pattern", json!({"up": 0}), "rank_pattern.up"),
        ("alpha_pattern", json!({"up": "8"}), "alpha_pattern.up"),
        ("alpha_pattern", json!({"(": 8}), "alpha_pattern.("),
        ("alpha_pattern", json!({"a)(b": 8}), "alpha_pattern.a)(b"),
    ] {
        assert_eq!(refused(read(&config_with(key, pattern), &tensors())), item);
    }
}

#[test]
fn options_that_change_nothing_are_accepted() {
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(false)),
        ("inference_mode", json!(true)),
        ("base_model_name_or_path", json!("some/model")),
        ("task_type", json!("CAUSAL_LM")),
        ("auto_mapping", json!({"base_model_class": "X"})),
        ("peft_version", json!("0.18.0")),
        ("revision", json!("main")),
        ("something_new", json!(null)),
        ("something_new", json!(false)),
        ("rank_pattern", json!(null)),
        ("layers_to_transform", json!(null)),
    ] {
        assert_eq!(read(&config_with(key, value), &tensors()).unwrap().modules().len(), 2, "{key}");
    }
}

#[test]
fn tensors_that_are_no_factors_are_refused_by_name() {
    for name in [
        "base_model.model.embed.lora_embedding_A",
        "base_model.model.layers.0.up.lora_magnitude_vector",
        "base_model.model.layers.0.up.lora_B.bias",
        "base_model.model.lm_head.weight",
        "base_model.model.layers.0.up.lora_A.other.weight",
        "base_model.model.lora_A.weight",
        "layers.0.up.lora_A.weight",
        "",
    ] {
        let stored = [tensors(), vec![crate::files::stored(name, &[2, 3])]].concat();
        assert_eq!(refused(read(&config(), &stored)), name);
    }
}

#[test]
fn factors_that_do_not_fit_are_refused_by_name() {
    let (a, b) = ("base_model.model.layers.0.up.lora_A.weight", "base_model.model.layers.0.up.lora_B.weight");
    let change = |name: &str, change: &dyn Fn(&mut Stored)| {
        let mut stored = tensors();
        change(stored.iter_mut().find(|t| t.name == name).unwrap());
        refused(read(&config(), &stored))
    };
    let reshape = |shape: &'static [usize]| move |t: &mut Stored| *t = crate::files::stored(&t.name, shape);
    assert_eq!(change(a, &reshape(&[3, 3])), a);
    assert_eq!(change(b, &reshape(&[4, 3])), b);
    assert_eq!(change(a, &reshape(&[2, 3, 1])), a);
    assert_eq!(change(b, &reshape(&[8])), b);
    assert_eq!(change(b, &reshape(&[])), b);
    assert_eq!(change(a, &reshape(&[2, 0])), a);
    assert_eq!(change(b, &reshape(&[0, 2])), b);
    assert_eq!(change(a, &|t| t.dtype = Dtype::I32), a);
    assert_eq!(change(a, &|t| (t.dtype, t.shape) = (Dtype::F64, vec![1, 3])), a);
    assert_eq!(change(a, &|t| t.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes())), a);
    assert_eq!(change(b, &|t| t.bytes[4..8].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes())), b);
    let half = |t: &mut Stored| (t.dtype, t.bytes) = (Dtype::F16, vec![0; t.bytes.len() / 2]);
    assert_eq!(change(b, &half), b, "A and B of two element types");
    for missing in [a, b] {
        let stored: Vec<Stored> = tensors().into_iter().filter(|t| t.name != missing).collect();
        assert_eq!(refused(read(&config(), &stored)), "base_model.model.layers.0.up");
    }
    let none = config_with("target_modules", json!("all-linear"));
    assert_eq!(refused(read(&none, &[])), "tensors");
}
