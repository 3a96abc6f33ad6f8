//! Rust, CUDA C++, the table of entries and the shipped PTX say the same.

use super::entry::{Entry, Kernel, Named};
use super::module::Set;
use super::params::*;
use crate::adapter::{attention::MAX_ROUTER_RANK, slots::Slot};
use crate::device::status::Status;
use crate::ops::grouped::{Rows, cuda::rows_word};
use crate::ops::route::{Select, Weighting};
use std::collections::BTreeMap;

const HEADER: &str = include_str!("../../../kernels/params.cuh");
const TABLE: &str = include_str!("../../../kernels/README.md");
const RUST: &str = include_str!("params.rs");
const SLOTS: &str = include_str!("../../adapter/slots.rs");

/// A field as both languages lay it out.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Field {
    name: String,
    /// `pointer`, `u32`, `f32`, or a struct's name.
    kind: String,
    count: usize,
}

fn field(name: &str, kind: &str, count: usize) -> Field {
    Field { name: name.trim().into(), kind: kind.trim().into(), count }
}

/// The text between the braces of a struct, without comments.
fn body<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let start = text.find(head).unwrap_or_else(|| panic!("no {head}")) + head.len();
    let text = &text[start..];
    let text = &text[..text.find("\n}").expect("an end")];
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect()
}

fn fields_of_cuda(name: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    for statement in body(HEADER, &format!("struct {name} {{")).concat().split(';') {
        let statement = statement.trim().trim_start_matches("const ");
        let Some((kind, names)) = statement.split_once(' ') else { continue };
        for name in names.split(',') {
            let (name, count) = match name.split_once('[') {
                Some((name, count)) => (name, count.trim_end_matches(']').parse().expect("a number")),
                None => (name, 1),
            };
            let kind = match (kind.ends_with('*') || name.trim().starts_with('*'), kind) {
                (true, _) => "pointer",
                (_, "float") => "f32",
                (_, kind) => kind,
            };
            fields.push(field(name.trim().trim_start_matches('*'), kind, count));
        }
    }
    fields
}

fn fields_of_rust(text: &str, head: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    for line in body(text, head) {
        let line = line.trim().trim_end_matches(',');
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        let Some((name, kind)) = line.split_once(": ") else { continue };
        let (kind, count) = match kind.trim_matches(['[', ']']).split_once("; ") {
            Some((kind, count)) => (kind, count.parse().expect("a number")),
            None => (kind, 1),
        };
        fields.push(field(name, if kind == "Address" { "pointer" } else { kind }, count));
    }
    fields
}

/// Bytes of a struct by C's rules, given those of the structs in it.
fn size(fields: &[Field], known: &BTreeMap<&str, usize>) -> usize {
    let (mut at, mut align) = (0usize, 4usize);
    for field in fields {
        let (bytes, own) = match field.kind.as_str() {
            "pointer" => (8, 8),
            "u32" | "f32" => (4, 4),
            other => (known[other], 8),
        };
        (at, align) = (at.next_multiple_of(own) + bytes * field.count, align.max(own));
    }
    at.next_multiple_of(align)
}

#[test]
fn structs_lie_alike() {
    let mut known = BTreeMap::new();
    for (name, rust_size) in [
        ("PlanParams", size_of::<PlanParams>()),
        ("RouteParams", size_of::<RouteParams>()),
        ("ShrinkParams", size_of::<ShrinkParams>()),
        ("AttendParams", size_of::<AttendParams>()),
        ("ExpandParams", size_of::<ExpandParams>()),
        ("BaseParams", size_of::<BaseParams>()),
        ("FewParams", size_of::<FewParams>()),
        ("GroupedParams", size_of::<GroupedParams>()),
        ("FusedParams", size_of::<FusedParams>()),
        ("GateParams", size_of::<GateParams>()),
        ("ConcatParams", size_of::<ConcatParams>()),
        ("CeilingParams", size_of::<CeilingParams>()),
    ] {
        let fields = fields_of_cuda(name);
        assert!(fields.len() >= 6, "{name}: {fields:?}");
        assert_eq!(fields, fields_of_rust(RUST, &format!("struct {name} {{")), "{name}");
        assert_eq!(size(&fields, &known), rust_size, "{name}");
        known.insert(name, rust_size);
    }
    let slot = fields_of_cuda("Slot");
    assert_eq!(slot, fields_of_rust(SLOTS, "pub struct Slot {"));
    assert_eq!(size(&slot, &known), size_of::<Slot>());
}

#[test]
fn constants_are_alike() {
    let mut constants = BTreeMap::new();
    for statement in HEADER.split(';') {
        let Some((_, list)) = statement.split_once("constexpr u32") else { continue };
        for part in list.split(',') {
            let (name, value) = part.split_once('=').expect("a value");
            let value = value.trim().trim_end_matches('u');
            let value = match value.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => value.parse(),
            };
            constants.insert(name.trim(), value.expect("a number"));
        }
    }
    let mut expected = BTreeMap::from([
        ("TILE_ROUTES", TILE_ROUTES),
        ("CHUNK_ROUTES", CHUNK_ROUTES),
        ("CHUNK_TOKENS", CHUNK_TOKENS),
        ("NONE", u32::MAX),
        ("QUERY_RANKS", MAX_ROUTER_RANK as u32),
        ("FEW_ROUTES", FEW_ROUTES),
        ("PLAIN", rows_word(Rows::Plain)),
        ("GATED", rows_word(Rows::Gated)),
        ("COMBINED", rows_word(Rows::Combined)),
        ("GATE_ROWS", GATE_ROWS),
        ("GATE_EXPERTS", GATE_EXPERTS),
        ("TYPE_F32", type_word(crate::ElementType::F32)),
        ("TYPE_F16", type_word(crate::ElementType::F16)),
        ("TYPE_BF16", type_word(crate::ElementType::Bf16)),
        ("SUM", output_word(crate::ops::Output::Sum)),
        ("PER_ROUTE", output_word(crate::ops::Output::PerRoute)),
        ("RANK_SUM", output_word(crate::ops::Output::RankSum)),
    ]);
    expected.extend(Status::CONSTANTS);
    let weightings = [
        "SOFTMAX_SELECTED",
        "SOFTMAX_ALL",
        "SOFTMAX_ALL_RENORMALISED",
        "SOFTMAX_TWICE",
        "ABOVE_THRESHOLD",
        "SIGMOID",
        "UNIFORM",
        "SCORE_ITSELF",
    ];
    expected.extend(weightings.into_iter().zip(Weighting::ALL.map(weighting_word)));
    expected.extend([
        ("ROUTE_TOKENS", ROUTE_TOKENS),
        ("ROUTE_TOP_K", ROUTE_TOP_K),
        ("SELECT_TOP_K", select_word(Select::TopK)),
        ("SELECT_THRESHOLD", select_word(Select::Threshold(0.5))),
        ("SELECT_LEARNED", select_word(Select::LearnedThreshold(0.5))),
    ]);
    assert_eq!(constants, expected);
}

/// Names without element types, and threads.
#[test]
fn the_table_of_entries_is_alike() {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        rows.insert(cells[1].trim_matches('`').to_string(), cells[2].parse::<u32>().expect("threads"));
    }
    let row = |kernel: &Kernel| {
        let name = Entry::plain(*kernel).name();
        let name = match kernel.named() {
            Named::Nothing => name,
            Named::X | Named::Half => name.replace("_f32", "_{x}"),
            Named::XAndA => name.replace("_f32_f32", "_{x}_{a}"),
        };
        (name, kernel.threads())
    };
    assert_eq!(rows, Kernel::ALL.iter().map(row).collect());
}

/// The bytes of the one parameter of every entry of a text, by name.
fn entries_of(text: &str) -> BTreeMap<&str, usize> {
    let mut entries = BTreeMap::new();
    for part in text.split(".entry ").skip(1) {
        let (name, rest) = part.split_once('(').expect("parameters");
        let params = rest.split_once(')').expect("their end").0;
        assert_eq!(params.matches(".param").count(), 1, "{name} takes one parameter");
        let bytes = params.split_once('[').and_then(|(_, rest)| rest.split_once(']')).expect("an array").0;
        entries.insert(name.trim(), bytes.parse().expect("a number"));
    }
    entries
}

fn bytes_of(kernel: Kernel) -> usize {
    match kernel {
        Kernel::RouteFew | Kernel::RouteMany => size_of::<RouteParams>(),
        Kernel::PlanOne | Kernel::PlanChunks | Kernel::PlanScan | Kernel::PlanPlace => {
            size_of::<PlanParams>()
        }
        Kernel::ShrinkFew | Kernel::ShrinkMany | Kernel::ShrinkMma | Kernel::ShrinkRankSum => {
            size_of::<ShrinkParams>()
        }
        Kernel::Attend => size_of::<AttendParams>(),
        Kernel::ExpandFew | Kernel::ExpandMany | Kernel::ExpandMma => size_of::<ExpandParams>(),
        Kernel::BaseFew | Kernel::BaseMany | Kernel::BaseMma => size_of::<BaseParams>(),
        Kernel::FusedFew | Kernel::FusedFewMma => size_of::<FewParams>(),
        Kernel::GroupedMany | Kernel::GroupedMma => size_of::<GroupedParams>(),
        Kernel::FusedSparseMma | Kernel::FusedDenseMma | Kernel::FusedMany => size_of::<FusedParams>(),
        Kernel::FusedGate | Kernel::FusedGateMma => size_of::<GateParams>(),
        Kernel::FusedConcat => size_of::<ConcatParams>(),
        Kernel::CeilingMultiply | Kernel::CeilingMma | Kernel::CeilingRead => size_of::<CeilingParams>(),
    }
}

#[test]
fn the_shipped_texts_have_every_entry_and_no_other() {
    for set in [Set::Sm75, Set::Sm80] {
        let in_set = |e: &Entry| set == Set::Sm80 || !e.kernel.is_mma() || e.x != crate::ElementType::Bf16;
        let want: BTreeMap<String, usize> =
            Entry::all().filter(in_set).map(|e| (e.name(), bytes_of(e.kernel))).collect();
        let got: BTreeMap<String, usize> =
            entries_of(set.text()).into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect();
        assert_eq!(got, want, "{}", set.name());
    }
}
