//! What the CUDA kernels do, counted on the PTX machine and held to `tests/counters.tsv`: counts do not drift, so a number
//! that grew is a kernel that got worse. `MOLORA_WRITE_COUNTERS=1` writes the table anew; the change then stands in the
//! commit.
#![cfg(feature = "cuda")]

use molora::element::ElementType::{self, Bf16, F32};
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;
use molora_check::counters::{COLUMNS, Row, count, row};
use molora_check::{Case, Group, Inputs, Op, Routing, Subject, subjects};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Table = BTreeMap<(String, String), Row>;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/counters.tsv")
}

/// `(tokens, in_features, out_features, experts, top_k, rank)`: the case, then published shapes that a machine
/// runs in a moment: MING-MOE on 7B (1 token, 16, 64), Qwen3-30B-A3B's experts, PHATGOOSE, RAMoLE.
const SHAPES: [(usize, usize, usize, usize, usize, usize); 7] = [
    PEERS,
    (1, 4096, 4096, 8, 2, 16),
    (16, 4096, 1024, 8, 2, 16),
    (64, 4096, 1024, 8, 2, 16),
    (16, 2048, 768, 128, 8, 16),
    (64, 2048, 1024, 36, 2, 16),
    (9, 4096, 1024, 48, 3, 8),
];

/// 48 tokens, hidden 512, width 256, 16 experts of two adapters, top 8, rank 16: where the peers' kernels were counted.
const PEERS: (usize, usize, usize, usize, usize, usize) = (48, 512, 256, 32, 8, 16);

fn sized(op: Op, shape: (usize, usize, usize, usize, usize, usize), element: ElementType) -> Case {
    let (tokens, in_features, out_features, experts, top_k, rank) = shape;
    let mut case = Case { tokens, ..Case::new(op) }.element(element);
    if op != Op::Base {
        (case.experts, case.top_k) = (experts, top_k);
    }
    if matches!(op, Op::Shrink | Op::Attend | Op::Expand | Op::Fused | Op::Grouped) {
        case.ranks = vec![rank];
    }
    if matches!(op, Op::Route | Op::Shrink | Op::Attend | Op::Base | Op::Fused | Op::Grouped) {
        case.in_features = in_features;
    }
    if matches!(op, Op::Expand | Op::Base | Op::Fused | Op::Grouped) {
        case.out_features = out_features;
    }
    case
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in SHAPES {
        cases.extend(
            [Op::Route, Op::Plan, Op::Shrink, Op::Expand]
                .map(|op| sized(op, shape, if op == Op::Plan { F32 } else { Bf16 })),
        );
    }
    // PHATGOOSE's router, in tiles of tokens.
    cases.push(sized(Op::Route, (128, 2048, 1, 166, 2, 1), Bf16));
    cases.extend([Op::Shrink, Op::Expand].map(|op| sized(op, PEERS, F32)));
    cases.extend(
        [(Bf16, 1), (Bf16, 8), (Bf16, 128), (F32, 1), (F32, 64)]
            .map(|(element, tokens)| sized(Op::Base, (tokens, 1024, 512, 1, 1, 1), element)),
    );
    cases.extend([1, 8, 16].map(|tokens| few(tokens, Bf16)));
    cases.push(few(8, F32));
    cases.extend([fused(PEERS), fused((128, 1024, 512, 8, 2, 16)), fused((128, 1024, 512, 64, 2, 40))]);
    cases.push(Case { form: Some(Form::Dense), ..fused((128, 1024, 512, 8, 2, 16)) });
    cases.extend(Rows::ALL.map(grouped));
    cases.push(sized(Op::Attend, (64, 1024, 1, 24, 3, 8), F32));
    cases
}

/// Experts of a SwiGLU block: 64 tokens, 8 base experts, adapters of rank 16 mixed inside.
fn grouped(rows: Rows) -> Case {
    let group = Group { experts: 8, rows, x_per_route: rows == Rows::Combined };
    Case { group, ..sized(Op::Grouped, (64, 512, 512, 2, 2, 16), Bf16) }
}

/// Few tokens in one launch.
fn few(tokens: usize, element: ElementType) -> Case {
    Case { form: Some(Form::Few), ..sized(Op::Fused, (tokens, 1024, 512, 8, 2, 16), element) }
}

/// The fused layer's sparse form.
fn fused(shape: (usize, usize, usize, usize, usize, usize)) -> Case {
    Case { form: Some(Form::Sparse), ..sized(Op::Fused, shape, Bf16) }
}

/// The machine where it runs the kernels that ship for sm_80: the table is theirs.
fn stand_in() -> Option<Box<dyn Subject>> {
    let shipped = std::env::var_os("PTX_MACHINE_PTX").is_none();
    let is_counted = |s: &dyn Subject| {
        s.is_stand_in() && shipped && s.details().contains(&("kernels".into(), "sm_80".into()))
    };
    let found = subjects().unwrap_or_else(|why| panic!("{why}")).into_iter().find(|s| is_counted(s.as_ref()));
    if found.is_none() {
        println!("not tested: no PTX machine here with the sm_80 kernels as shipped");
    }
    found
}

/// The figures of one call, by kernel.
fn rows(subject: &dyn Subject, case: &Case) -> BTreeMap<String, Row> {
    let inputs = Inputs::new(case);
    let counters = count(subject, &inputs).unwrap().expect("a stand-in counts");
    counters
        .into_iter()
        .map(|(kernel, counters)| (kernel.clone(), row(&inputs, &kernel, &counters)))
        .collect()
}

fn measured(subject: &dyn Subject) -> Table {
    let mut table = Table::new();
    for case in cases() {
        for (kernel, row) in rows(subject, &case) {
            table.insert((case.to_string(), kernel), row);
        }
    }
    table
}

fn write(table: &Table) {
    let mut text = format!("case\tkernel\t{}\n", COLUMNS.join("\t"));
    for ((case, kernel), row) in table {
        let row: Vec<String> = row.iter().map(f64::to_string).collect();
        text += &format!("{case}\t{kernel}\t{}\n", row.join("\t"));
    }
    std::fs::write(path(), text).unwrap();
}

fn read() -> Table {
    let text = std::fs::read_to_string(path()).expect("tests/counters.tsv is there");
    let mut lines = text.lines();
    let heading = format!("case\tkernel\t{}", COLUMNS.join("\t"));
    assert_eq!(lines.next(), Some(heading.as_str()), "columns of tests/counters.tsv");
    let mut table = Table::new();
    for line in lines {
        let mut fields = line.split('\t');
        let key = (fields.next().unwrap().to_string(), fields.next().unwrap().to_string());
        table.insert(key, std::array::from_fn(|_| fields.next().unwrap().parse().unwrap()));
    }
    table
}

/// Which block comes last and adds the others' rows is up to the order of blocks, and with it a few instructions in a million.
fn of_order(case: &str) -> f64 {
    if case.contains("combined") { 1e-4 } else { 0.0 }
}

#[test]
fn no_counter_worsens() {
    let Some(subject) = stand_in() else { return };
    let got = measured(subject.as_ref());
    if std::env::var_os("MOLORA_WRITE_COUNTERS").is_some() {
        write(&got);
    }
    let granted = read();
    let keys = |table: &Table| table.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&got), keys(&granted), "cases and kernels; MOLORA_WRITE_COUNTERS=1 writes them anew");
    let mut worse = Vec::new();
    for (key, row) in &got {
        for ((column, got), granted) in COLUMNS.iter().zip(row).zip(&granted[key]) {
            if *got > granted * (1.0 + of_order(&key.0)) {
                worse.push(format!("{} {}: {column} {granted} -> {got}", key.0, key.1));
            }
        }
    }
    assert!(worse.is_empty(), "{}", worse.join("\n"));
}

/// The fused layer reads, beside what its two products read alone, every active adapter once and h once, and its steps run
/// over whole sixteens of ranks of the experts that the tile uses, no more.
#[test]
fn the_extension_reads_b_and_h_alone() {
    let Some(subject) = stand_in() else { return };
    let (tokens, inner, out, experts, rank) = (128, 1024, 512, 8, 16);
    let case = fused((tokens, inner, out, experts, 2, rank));
    let base = Case { tokens, in_features: inner, out_features: out, ..Case::new(Op::Base) }.element(Bf16);
    let (rows, base) = (rows(subject.as_ref(), &case), rows(subject.as_ref(), &base));
    let (fused, base) = (rows["fused_sparse_mma_bf16"], base["base_mma_bf16"]);
    // One row of tiles, four of columns: B once; h, 64 bytes a route, once for every tile of columns.
    let b = experts * rank * out * 2 / 32;
    let h = 4 * case.routes() * rank * 4 / 32;
    let bound = 1.05 * (base[3] + (b + h) as f64);
    assert!(fused[3] <= bound, "sectors read: {}, bound {bound}", fused[3]);
    assert_eq!(fused[0], 1.0, "launches");
}

/// The bounds that peers' counts set; see README, Results.
#[test]
fn the_peers_are_beaten() {
    let Some(subject) = stand_in() else { return };
    let shrink = sized(Op::Shrink, PEERS, Bf16);
    let expand = sized(Op::Expand, PEERS, Bf16);
    let one = |case: &Case| {
        let rows = rows(subject.as_ref(), case);
        assert_eq!(rows.len(), 1, "one launch: {:?}", rows.keys());
        let (kernel, row) = rows.into_iter().next().unwrap();
        assert!(kernel.contains("_mma_"), "tensor cores: {kernel}");
        row
    };
    let (shrink_row, expand_row) = (one(&shrink), one(&expand));
    for (name, row) in [("shrink", shrink_row), ("expand", expand_row)] {
        assert!(row[2] <= 1.5, "{name}: mma issued {} times the useful", row[2]);
        assert_eq!(row[5], 0.0, "{name}: loads of 2 bytes");
    }
    // Each A and B once, x once per route, in sectors of 32 bytes.
    let (a, b) = (32 * 16 * 512 * 2 / 32, 32 * 16 * 256 * 2 / 32);
    let x = shrink.routes() * 512 * 2 / 32;
    let bound = 1.1 * (a + b + x) as f64;
    let read = shrink_row[3] + expand_row[3];
    assert!(read <= bound, "sectors read: {read}, bound {bound}");
    assert_eq!(shrink_row[7], 1.0, "shrink: wavefronts over ideal");
}

/// Sectors of 32 bytes that a case's launches ask for, and distinct ones, read and written.
fn sectors(subject: &dyn Subject, case: &Case) -> (f64, f64) {
    let counters = count(subject, &Inputs::new(case)).unwrap().expect("a stand-in counts");
    assert_eq!(counters.len(), 1, "one kernel: {:?}", counters.keys());
    let kernel = counters.into_values().next().unwrap();
    assert_eq!(kernel["launches"], 1, "one launch");
    let asked = |access: &str| -> f64 {
        let widths = kernel[access].as_object().into_iter().flatten();
        widths.map(|(_, width)| width["sectors"].as_f64().unwrap()).sum()
    };
    let unique = |access: &str| kernel[access]["sectors"].as_f64().unwrap();
    (
        asked("global_loads") + asked("global_stores") + asked("async_copies"),
        unique("unique_read") + unique("unique_written"),
    )
}

/// The bar of the fused layer: no more bytes than 1.05 times the base product's own, the active A and B once, x once more,
/// and h written and read once: in distinct sectors, what memory must give, and in sectors asked for.
///
/// On tensor cores from 9 tokens on base shares x in tiles of 128 columns, and few's blocks of 32 columns ask the second-level
/// cache for x and h once each: T (1/32 - 1/128) of the weight's bytes more for T tokens. Within the bar's twentieth lie
/// blocks of 92 columns and more at 16 tokens: 44 blocks would read a weight of 4096 rows. What the smaller blocks cost is
/// allowed for, and nothing beyond it.
#[test]
fn few_moves_no_more_than_its_parts() {
    let Some(subject) = stand_in() else { return };
    for (tokens, element) in [(1, Bf16), (8, Bf16), (16, Bf16), (1, F32), (8, F32), (16, F32)] {
        let case = few(tokens, element);
        let base = sized(Op::Base, (tokens, 1024, 512, 1, 1, 1), element);
        let inputs = Inputs::new(&case);
        let mut active: Vec<i32> = inputs.topk_ids.iter().copied().filter(|&id| id >= 0).collect();
        let h = (active.len() * 16 * 4) as f64 / 32.0;
        active.sort_unstable();
        active.dedup();
        let adapters = (active.len() * 16 * (1024 + 512) * element.bytes()) as f64 / 32.0;
        let x = (tokens * 1024 * element.bytes()) as f64 / 32.0;
        let ((asked, unique), (base_asked, base_unique)) =
            (sectors(subject.as_ref(), &case), sectors(subject.as_ref(), &base));
        let bar = |base: f64| 1.05 * (base + adapters + x + 2.0 * h);
        let blocks = match (tokens > 8, element) {
            (true, Bf16) => 512.0 / 32.0 - 512.0 / 128.0,
            _ => 0.0,
        };
        let smaller = blocks * (x + h);
        println!(
            "{case}: asked {asked}, base {base_asked}, bar {:.0} + {smaller:.0}; distinct {unique}, base {base_unique}, bar {:.0}",
            bar(base_asked),
            bar(base_unique)
        );
        assert!(asked <= bar(base_asked) + smaller, "{case}: {asked} sectors asked for");
        assert!(unique <= bar(base_unique), "{case}: {unique} above {}", bar(base_unique));
    }
}

/// Where every route has an expert, who brings a row of a combined product need not look up which others come.
#[test]
fn rows_that_come_are_counted_and_not_looked_up() {
    let Some(subject) = stand_in() else { return };
    // 64 blocks of columns leave counters for groups of eight tokens: 16 ids each.
    let group = Group { experts: 4, rows: Rows::Combined, x_per_route: true };
    let case = Case { group, ..sized(Op::Grouped, (1024, 32, 8192, 1, 2, 4), Bf16) };
    // Beside these sectors, per row of scratch, and per warp the id and the weight of every route that it adds.
    let others = [Routing::Uniform, Routing::WithGaps].map(|routing| {
        let inputs = Inputs::new(&Case { routing, ..case.clone() });
        let live = inputs.topk_ids.iter().filter(|&&id| id >= 0).count();
        let needed = live * (8192 * 4 / 32) + 64 * 4 * (case.routes() + live);
        let counters = count(subject.as_ref(), &inputs).unwrap().unwrap();
        counters["grouped_mma_bf16"]["global_loads"]["4"]["sectors"].as_f64().unwrap() - needed as f64
    });
    println!(
        "{case}: other sectors of single words: {} where every route has an expert, {} with gaps",
        others[0], others[1]
    );
    assert!(others[0] >= 0.0 && 2.0 * others[0] < others[1]);
}
