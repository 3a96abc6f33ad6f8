//! The PTX that ships: every instruction is known, and those that a slip would hide in have vectors here.

use ptx_machine::ptx;
use std::collections::BTreeSet;

const TEXTS: [(&str, &str); 2] = [
    ("sm_75", include_str!("../../../../kernels/ptx/molora_sm_75.ptx")),
    ("sm_80", include_str!("../../../../kernels/ptx/molora_sm_80.ptx")),
];

const VECTORS: [&str; 3] = [include_str!("matrix.rs"), include_str!("warp.rs"), include_str!("convert.rs")];

/// Instructions across lanes, of matrices, and conversions: fragment maps, lanes and roundings.
const FAMILIES: [&str; 8] = ["mma", "ldmatrix", "movmatrix", "shfl", "vote", "match", "redux", "cvt"];

/// Forms that have vectors, and how these spell them.
const COVERED: [(&str, &str); 23] = [
    ("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", "check_mma(8, \"f16\", \"f32\", \"f32\")"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "check_mma(16, \"f16\", \"f32\", \"f32\")"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "check_mma(16, \"bf16\", \"f32\", \"f32\")"),
    ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", "ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16"),
    (
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16",
    ),
    ("movmatrix.sync.aligned.m8n8.trans.b16", "movmatrix.sync.aligned.m8n8.trans.b16"),
    ("shfl.sync.up.b32", "[\"up\", \"down\", \"bfly\", \"idx\"]"),
    ("shfl.sync.bfly.b32", "shfl.sync.{mode}.b32"),
    ("shfl.sync.idx.b32", "shfl.sync.idx.b32"),
    ("vote.sync.ballot.b32", "vote.sync.ballot.b32"),
    ("vote.sync.any.pred", "vote.sync.any.pred"),
    ("cvt.f32.f16", "cvt.f32.f16"),
    ("cvt.rn.f16.f32", "cvt.rn.f16.f32"),
    ("cvt.rn.f32.u32", "cvt.rn.f32.u32"),
    ("cvt.rn.f16x2.f32", "cvt.rn.f16x2.f32"),
    ("cvt.rn.bf16x2.f32", "cvt.rn.bf16x2.f32"),
    ("cvt.sat.f32.f32", "cvt.sat.f32.f32"),
    ("cvt.s64.s32", "cvt.s64.s32"),
    ("cvt.u16.u32", "cvt.u16.u32"),
    ("cvt.u32.u16", "cvt.u32.u16"),
    ("cvt.u32.u64", "cvt.u32.u64"),
    ("cvt.u64.u16", "cvt.u64.u16"),
    ("cvt.u64.u32", "cvt.u64.u32"),
];

/// The opcodes of a text with all their suffixes.
fn forms(text: &str) -> BTreeSet<&str> {
    let bare = text.lines().map(|line| line.trim_start_matches([' ', '\t', '{']));
    let unguarded = bare.map(|line| match line.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ').map_or("", |(_, rest)| rest.trim_start()),
        None => line,
    });
    unguarded.filter_map(|line| line.split([' ', '\t', ';']).next()).collect()
}

#[test]
fn every_instruction_that_ships_is_known() {
    for (set, text) in TEXTS {
        let module = ptx::parse(text).unwrap_or_else(|error| panic!("{set}: {error}"));
        assert!(module.kernels.len() > 30, "{set}: {} kernels", module.kernels.len());
        for (name, kernel) in &module.kernels {
            assert!(kernel.unknown.is_empty(), "{set}: {name}: {:?}", kernel.unknown);
        }
    }
}

#[test]
fn every_form_that_ships_has_vectors() {
    let mut missing = BTreeSet::new();
    for (set, text) in TEXTS {
        let forms = forms(text);
        assert!(forms.len() > 80, "{set}: {} forms", forms.len());
        let in_family = |form: &&&str| FAMILIES.contains(&form.split('.').next().unwrap_or_default());
        let covered = |form: &str| COVERED.iter().any(|(name, _)| *name == form);
        missing.extend(forms.iter().filter(in_family).filter(|form| !covered(form)).copied());
    }
    assert!(missing.is_empty(), "no vectors for {missing:?}");
}

#[test]
fn the_vectors_are_there() {
    for (form, spelt) in COVERED {
        assert!(VECTORS.iter().any(|text| text.contains(spelt)), "{form}: no test has {spelt}");
    }
}
