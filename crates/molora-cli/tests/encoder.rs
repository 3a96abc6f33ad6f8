//! The sentence encoder against embeddings that the model's own library (PyTorch, f32) made: of a tiny random model
//! whose files that library wrote, and of all-MiniLM-L6-v2.

use molora_cli::encoder::Encoder;
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn expected(name: &str) -> Vec<Expected> {
    serde_json::from_str(&std::fs::read_to_string(data(name)).unwrap()).unwrap()
}

/// The largest difference of any value; the ids are equal, the norms 1.
fn worst(encoder: &Encoder, expected: &[Expected]) -> f32 {
    let mut worst = 0f32;
    for Expected { text, ids, embedding } in expected {
        assert_eq!(&encoder.ids(text).unwrap(), ids, "{text:?}");
        let got = encoder.embed(&[text]).unwrap();
        assert_eq!((got.len(), embedding.len()), (encoder.dims(), encoder.dims()));
        let norm: f32 = got.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{text:?}: squared norm {norm}");
        // A value that is no number fails the norm.
        worst = got.iter().zip(embedding).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    worst
}

#[test]
fn a_tiny_model_gives_its_librarys_embeddings() {
    let encoder = Encoder::load(&data("tiny-bert")).unwrap();
    let expected = expected("tiny-bert/expected.json");
    let worst = worst(&encoder, &expected);
    assert!(worst < 2e-6, "{worst:e}");
    // Empty, ordinary and cut off.
    let lengths: Vec<usize> = expected.iter().map(|e| e.ids.len()).collect();
    assert!(lengths.contains(&2) && lengths.contains(&12), "{lengths:?}");
}

#[test]
fn a_text_has_the_same_bits_alone_and_among_others() {
    let encoder = Encoder::load(&data("tiny-bert")).unwrap();
    let texts = ["the law", "a doctor said , a doctor said", "", "the law"];
    let together = encoder.embed(&texts).unwrap();
    for (text, row) in texts.iter().zip(together.chunks_exact(encoder.dims())) {
        assert_eq!(encoder.embed(&[text]).unwrap(), row, "{text:?}");
    }
    let adapter = encoder.adapter(&texts).unwrap();
    for (i, &mean) in adapter.iter().enumerate() {
        let sum: f32 = together.chunks_exact(encoder.dims()).map(|row| row[i]).sum();
        assert!((mean - sum / 4.0).abs() < 1e-6, "[{i}]");
    }
    assert!(encoder.adapter(&[""; 0]).unwrap_err().to_string().contains("sample texts"));
}

/// Copies the tiny model with one file changed.
fn spoilt(file: &str, from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(data("tiny-bert").join(name), folder.path().join(name)).unwrap();
    }
    let path = folder.path().join(file);
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    assert!(text.contains(from), "{file} holds no {from}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    match Encoder::load(folder.path()) {
        Ok(_) => panic!("{file}: {to} was accepted"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn files_that_do_not_fit_are_named() {
    for (file, from, to, said) in [
        ("config.json", "\"gelu\"", "\"relu\"", "hidden_act: expected gelu, got relu"),
        (
            "config.json",
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 3",
            "a divisor of hidden_size 16",
        ),
        ("config.json", "\"hidden_size\": 16", "\"hidden_size\": 8", "expected [2, 8], got [2, 16]"),
        ("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "encoder.layer.2"),
        ("config.json", "\"layer_norm_eps\"", "\"eps\"", "not BERT's"),
        ("tokenizer.json", "WordPiece", "Word", "tokenizer.json"),
    ] {
        let error = spoilt(file, from, to);
        assert!(error.contains(said), "{said} is not in: {error}");
    }
    let error = Encoder::load(Path::new("not/there")).err().expect("refused");
    assert!(format!("{error:#}").contains("not/there"), "{error:#}");
}

#[test]
#[ignore = "fetches a model of 91 MB once"]
fn minilm_gives_its_librarys_embeddings() {
    let encoder = Encoder::load(&molora_cli::fetch::encoder().unwrap()).unwrap();
    let worst = worst(&encoder, &expected("minilm.json"));
    println!("all-MiniLM-L6-v2: largest difference {worst:.1e}");
    assert!(worst < 5e-6, "{worst:e}");
}
