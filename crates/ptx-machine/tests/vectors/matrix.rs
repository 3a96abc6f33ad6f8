//! Fragment layouts: which element of a matrix each lane's registers hold.

use crate::harness::{Word, launch, run, text};
use half::{bf16, f16};
use ptx_machine::exec::Setup;

/// Small integers, exact in every type, and in every sum of their products.
fn element(seed: usize, row: usize, column: usize) -> f32 {
    let mixed = (row * 31 + column * 17 + seed * 7) * 2_654_435_761 % 1_000_003;
    (mixed % 17) as f32 - 8.0
}

fn encode(ty: &str, value: f32) -> u32 {
    match ty {
        "f16" => u32::from(f16::from_f32(value).to_bits()),
        "bf16" => u32::from(bf16::from_f32(value).to_bits()),
        _ => value.to_bits(),
    }
}

/// Registers of a fragment, element after element: `place(lane, i)` is the row and column of element i.
fn fragment(
    ty: &str,
    elements: usize,
    matrix: impl Fn(usize, usize) -> f32,
    place: impl Fn(usize, usize) -> (usize, usize),
) -> Vec<Word> {
    let each = if matches!(ty, "f16" | "bf16") { 2 } else { 1 };
    let mut out = vec![vec![0; 32]; elements / each];
    for i in 0..elements {
        for (lane, bits) in out[i / each].iter_mut().enumerate() {
            let (row, column) = place(lane, i);
            *bits |= encode(ty, matrix(row, column)) << (16 * (i % each));
        }
    }
    out
}

/// The manual's formulas for A: m16n8k16 has eight halves, m16n8k8 four; tf32 has four or two singles.
fn place_a(ty: &str, k: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match (ty, k) {
        ("tf32", 4) => (if i == 0 { group } else { group + 8 }, thread),
        ("tf32", _) => {
            (if i == 0 || i == 2 { group } else { group + 8 }, if i < 2 { thread } else { thread + 4 })
        }
        (_, 16) => {
            let row = if i < 2 || (4..6).contains(&i) { group } else { group + 8 };
            (row, thread * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        }
        _ => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
    }
}

fn place_b(ty: &str, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match ty {
        "tf32" => (thread + 4 * i, group),
        _ => (thread * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, group),
    }
}

fn place_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

fn names(prefix: char, from: usize, count: usize) -> String {
    let names: Vec<String> = (from..from + count).map(|index| format!("%{prefix}{index}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// All products of one form against three loops.
fn check_mma(k: usize, ty: &str, d: &str, c: &str) {
    let (a, b) = (|row, k| element(1, row, k), |k, column| element(2, k, column));
    let old = |row, column| element(3, row, column) * 4.0;
    let mut inputs = fragment(ty, 16 * k / 32, a, |lane, i| place_a(ty, k, lane, i));
    let count_a = inputs.len();
    inputs.extend(fragment(ty, 8 * k / 32, b, |lane, i| place_b(ty, lane, i)));
    let count_b = inputs.len() - count_a;
    inputs.extend(fragment(c, 4, old, place_c));
    let count_c = inputs.len() - count_a - count_b;
    let count_d = if d == "f16" { 2 } else { 4 };
    let body = format!(
        "mma.sync.aligned.m16n8k{k}.row.col.{d}.{ty}.{ty}.{c} {}, {}, {}, {};",
        names('o', 0, count_d),
        names('i', 0, count_a),
        names('i', count_a, count_b),
        names('i', count_a + count_b, count_c),
    );
    let out = run(&body, &inputs, count_d);
    let product = |row, column| (0..k).map(|k| a(row, k) * b(k, column)).sum::<f32>() + old(row, column);
    assert_eq!(out, fragment(d, 4, product, place_c), "{body}");
}

#[test]
fn mma_forms() {
    check_mma(16, "f16", "f32", "f32");
    check_mma(16, "f16", "f16", "f16");
    check_mma(16, "f16", "f16", "f32");
    check_mma(16, "f16", "f32", "f16");
    check_mma(16, "bf16", "f32", "f32");
    check_mma(8, "f16", "f32", "f32");
    check_mma(8, "f16", "f16", "f16");
    check_mma(8, "bf16", "f32", "f32");
    check_mma(8, "tf32", "f32", "f32");
    check_mma(4, "tf32", "f32", "f32");
}

#[test]
fn mma_rounds_once_and_ignores_the_lower_bits_of_tf32() {
    // 2^24 + 1 + 1 is 2^24 after each f32 sum, and 2^24 + 2 if it is rounded once.
    let one = u32::from(f16::from_f32(1.0).to_bits());
    let [a, b, c] = [vec![one | one << 16; 32], vec![one; 32], vec![16_777_216_f32.to_bits(); 32]];
    let body = "mov.u32 %r0, 0; mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%o0,%o1,%o2,%o3}, {%i0,%i0}, {%i1}, {%i2,%i2,%i2,%i2};";
    let out = run(body, &[a, b, c], 4);
    assert_eq!(out[0], [(16_777_216.0_f32 + 4.0).to_bits(); 32]);
    let [a, b, c] = [vec![1.0_f32.to_bits() | 0x1fff; 32], vec![1.0_f32.to_bits(); 32], vec![0; 32]];
    let body = "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%o0,%o1,%o2,%o3}, {%i0,%i0}, {%i1}, {%i2,%i2,%i2,%i2};";
    assert_eq!(run(body, &[a, b, c], 4)[3], [4.0_f32.to_bits(); 32]);
}

#[test]
fn useful_share_of_an_mma() {
    // Four of sixteen rows, two of eight columns, eight of sixteen k.
    let one = |on: bool| if on { 1.0 } else { 0.0 };
    let mut inputs =
        fragment("bf16", 8, |row, k| one(row < 4 && k < 8), |lane, i| place_a("bf16", 16, lane, i));
    inputs.extend(fragment(
        "bf16",
        4,
        |k, column| one(column < 2 && k < 8),
        |lane, i| place_b("bf16", lane, i),
    ));
    let body = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%i0,%i1,%i2,%i3}, {%i4,%i5}, {0f00000000,0f00000000,0f00000000,0f00000000};";
    let text = text(body, 6, 0, 32);
    let (_, counters) = launch(&text, &inputs, 0, Setup::default()).unwrap();
    assert_eq!(counters.mma_issued, 1);
    assert_eq!(counters.mma_useful, 0.25 * 0.25 * 0.5);
    assert_eq!(counters.instructions["mma.sync.m16n8k16.bf16"], 1);
    assert_eq!(counters.warp_instructions, counters.instructions.values().sum::<u64>());
}

/// A shared array of 32 rows of 16 bytes, at `pitch` bytes each; its halves are numbered 8 row + column.
fn ldmatrix(count: usize, trans: &str, pitch: usize) -> Vec<Word> {
    let registers = names('o', 0, count);
    let registers = if count == 1 { format!("{{{}}}", "%o0") } else { registers };
    let body = format!(
        ".shared .align 16 .b8 rows[4096];
         mov.u32 %r0, rows; mad.lo.u32 %r0, %tid, {pitch}, %r0; mul.lo.u32 %r1, %tid, 0x00080008; add.u32 %r1, %r1, 0x00010000;
         add.u32 %r2, %r1, 0x00020002; add.u32 %r3, %r2, 0x00020002; add.u32 %r4, %r3, 0x00020002;
         st.shared.v4.u32 [%r0], {{%r1, %r2, %r3, %r4}};
         bar.sync 0;
         ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r0];"
    );
    run(&body, &[], count)
}

#[test]
fn ldmatrix_forms() {
    for count in [1, 2, 4] {
        for pitch in [16, 48] {
            for trans in ["", ".trans"] {
                let out = ldmatrix(count, trans, pitch);
                for (matrix, word) in out.iter().enumerate() {
                    for (lane, &got) in word.iter().enumerate() {
                        let half = |i: usize| {
                            let (row, column) = (lane / 4, lane % 4 * 2 + i);
                            let (row, column) = if trans.is_empty() { (row, column) } else { (column, row) };
                            (8 * (8 * matrix + row) + column) as u32
                        };
                        assert_eq!(
                            got,
                            half(0) | half(1) << 16,
                            "x{count}{trans} matrix {matrix} lane {lane}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn ldmatrix_feeds_mma() {
    // A row-major 16 x 16 tile by x4, a row-major 16 x 8 tile by x2.trans: the usual way.
    let bytes = |rows: usize, columns: usize, seed: usize| -> Vec<u32> {
        (0..rows * columns / 2)
            .map(|word| {
                let half = |i: usize| {
                    let index = 2 * word + i;
                    encode("bf16", element(seed, index / columns, index % columns))
                };
                half(0) | half(1) << 16
            })
            .collect()
    };
    let (a, b) = (bytes(16, 16, 1), bytes(16, 8, 2));
    let mut inputs: Vec<Word> = (0..4).map(|part| (0..32).map(|lane| a[4 * lane + part]).collect()).collect();
    inputs.extend((0..2).map(|part| -> Word { (0..32).map(|lane| b[2 * lane + part]).collect() }));
    let body = ".shared .align 16 .b8 tile[768];
         mov.u32 %r0, tile; mad.lo.u32 %r1, %tid, 16, %r0; st.shared.v4.b32 [%r1], {%i0, %i1, %i2, %i3};
         mad.lo.u32 %r1, %tid, 8, %r0; st.shared.v2.b32 [%r1+512], {%i4, %i5}; bar.sync 0;
         and.b32 %r2, %tid, 15; shr.u32 %r3, %tid, 4; shl.b32 %r4, %r2, 5; shl.b32 %r5, %r3, 4; add.u32 %r4, %r4, %r5;
         add.u32 %r4, %r4, %r0; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r4];
         shl.b32 %r5, %r2, 4; add.u32 %r5, %r5, %r0; ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r5+512];
         mov.b32 %f0, 0f00000000;
         mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4, %f5, %f6, %f7}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f0, %f0, %f0, %f0};
         mov.b32 %o0, %f4; mov.b32 %o1, %f5; mov.b32 %o2, %f6; mov.b32 %o3, %f7;";
    let out = run(body, &inputs, 4);
    let product = |row, column| (0..16).map(|k| element(1, row, k) * element(2, k, column)).sum::<f32>();
    assert_eq!(out, fragment("f32", 4, product, place_c));
}

#[test]
fn movmatrix_transposes() {
    let place = |lane: usize, i: usize| (lane / 4, lane % 4 * 2 + i);
    let from = fragment("f16", 2, |row, column| element(5, row, column), place);
    let due = fragment("f16", 2, |row, column| element(5, column, row), place);
    assert_eq!(run("movmatrix.sync.aligned.m8n8.trans.b16 %o0, %i0;", &from, 1), due);
}
