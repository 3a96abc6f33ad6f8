//! Adapters and routers from files of other sizes than the demo's own.

use candle_core::{DType, Device, Tensor};
use molora_cli::demo::files;
use molora_cli::engine::mixture::Mixture;
use molora_cli::engine::projection::Projection;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

fn tensor(shape: (usize, usize)) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

fn write_adapter(folder: &Path, rank: usize, alpha: usize, modules: &[&str]) {
    fs::create_dir_all(folder).unwrap();
    let mut tensors = HashMap::new();
    for module in modules {
        let key = format!("base_model.model.model.layers.{module}");
        tensors.insert(format!("{key}.lora_A.weight"), tensor((rank, 16)));
        tensors.insert(format!("{key}.lora_B.weight"), tensor((24, rank)));
    }
    candle_core::safetensors::save(&tensors, folder.join("adapter_model.safetensors")).unwrap();
    let names: Vec<&str> = modules.iter().filter_map(|module| module.split('.').next_back()).collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": names,
    });
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

fn write_routers(path: &Path, keys: &[&str], experts: usize) {
    let mut tensors = HashMap::new();
    for key in keys {
        tensors.insert(format!("layers.{key}.router.weight"), tensor((experts, 16)));
        let bias = Tensor::zeros(experts, DType::F32, &Device::Cpu).unwrap();
        tensors.insert(format!("layers.{key}.router.bias"), bias);
    }
    candle_core::safetensors::save(&tensors, path).unwrap();
}

#[test]
fn other_experts_ranks_and_layers_come_from_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let experts = folder.path().join("experts");
    write_adapter(&experts.join("zeta"), 3, 6, &["0.mlp.gate_proj", "2.mlp.up_proj"]);
    write_adapter(&experts.join("alpha"), 5, 5, &["2.mlp.up_proj"]);
    let routers = folder.path().join("routers.safetensors");
    write_routers(&routers, &["0.gate_proj", "2.up_proj"], 2);

    let mixture = Mixture::load(&experts, &routers, None).unwrap();
    assert_eq!(mixture.names, ["alpha", "zeta"]);
    assert_eq!(mixture.first_layer(), Some(0));
    let gate = &mixture.modules[&(0, Projection::Gate)];
    assert!(gate.experts[0].is_none());
    assert_eq!(gate.experts[1].as_ref().map(|lora| (lora.rank(), lora.scaling())), Some((3, 2.0)));
    assert_eq!(mixture.modules[&(2, Projection::Up)].experts.iter().flatten().count(), 2);

    let order = ["zeta".to_owned(), "alpha".to_owned()];
    let mixture = Mixture::load(&experts, &routers, Some(&order)).unwrap();
    assert!(mixture.modules[&(0, Projection::Gate)].experts[0].is_some());

    let wrong = ["zeta".to_owned()];
    let error = format!("{:#}", Mixture::load(&experts, &routers, Some(&wrong)).unwrap_err());
    assert!(error.contains("router.weight"), "{error}");
}

#[test]
fn a_missing_router_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let experts = folder.path().join("experts");
    write_adapter(&experts.join("one"), 3, 6, &["1.mlp.gate_proj"]);
    let routers = folder.path().join("routers.safetensors");
    write_routers(&routers, &["0.gate_proj"], 1);
    let error = format!("{:#}", Mixture::load(&experts, &routers, None).unwrap_err());
    assert!(error.contains("layers.1.gate_proj.router.weight"), "{error}");
}

#[test]
fn held_out_ids_are_checked_and_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("heldout.safetensors");
    let save = |values: Vec<i32>, shape: (usize, usize)| {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([("law", tensor)]), &path).unwrap();
    };
    save(vec![1, 2, 3, 4, 5, 6], (2, 3));
    let all = files::held_out(&path).unwrap();
    let cut = |sequences, domain: &str, tokens| files::cut(&all, sequences, &[domain.to_owned()], tokens);
    assert_eq!(cut(0..9, "law", 9).unwrap()["law"], [[1, 2, 3], [4, 5, 6]]);
    assert_eq!(cut(1..2, "law", 2).unwrap()["law"], [[4, 5]]);
    assert!(cut(7..9, "law", 2).unwrap()["law"].is_empty());
    assert!(cut(0..9, "law", 1).unwrap_err().to_string().contains("--tokens"));
    assert!(cut(0..9, "poems", 9).unwrap_err().to_string().contains("expected some of law, got poems"));
    save(vec![1, 2, 3, -4, 5, 6], (3, 2));
    assert!(format!("{:#}", files::held_out(&path).unwrap_err()).contains("-4"));
    save(vec![1, 2, 3], (3, 1));
    assert!(files::held_out(&path).is_err());
}

#[test]
fn expected_figures_are_read_under_both_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("expected.json");
    for name in ["perplexity", "perplexity_first4"] {
        fs::write(&path, format!(r#"{{"{name}": {{"base": {{"law": 2.5}}}}, "seed": 0}}"#)).unwrap();
        assert_eq!(files::expected(&path).unwrap()["base"]["law"], 2.5);
    }
    fs::write(&path, "{}").unwrap();
    assert!(format!("{:#}", files::expected(&path).unwrap_err()).contains("expected.json"));
}
