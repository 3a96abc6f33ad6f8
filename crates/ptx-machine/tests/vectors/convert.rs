//! Conversions.

use crate::harness::{Word, lanes, run, spread};
use half::{bf16, f16};

fn check(body: &str, inputs: &[Word], expect: impl Fn(u32) -> u32) {
    let out = run(body, inputs, 1);
    for lane in 0..32 {
        let (from, got) = (inputs[0][lane], out[0][lane]);
        let due = expect(from);
        assert_eq!(got, due, "{body}: {from:#x}: got {got:#x}, expected {due:#x}");
    }
}

/// Floats around integers, halves between them, and edges of every range.
fn floats() -> [Word; 2] {
    const EDGES: [f32; 20] = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        127.5,
        -129.0,
        65535.5,
        2_147_483_648.0,
        -2_147_483_904.0,
        4_294_967_296.0,
        1e20,
        -1e20,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-40,
        0.999_999_94,
    ];
    let some = spread(1);
    [
        lanes(|lane| EDGES[lane as usize % 20].to_bits()),
        lanes(|lane| ((some[lane as usize] as i32 >> (lane % 20)) as f32 / 64.0).to_bits()),
    ]
}

#[test]
fn integers() {
    for seed in 0..4 {
        let inputs = [spread(seed)];
        check("cvt.s64.s32 %d0, %i0; mov.b64 {_, %o0}, %d0;", &inputs, |x| (x as i32 >> 31) as u32);
        check("cvt.u64.u32 %d0, %i0; mov.b64 {_, %o0}, %d0;", &inputs, |_| 0);
        check(
            "cvt.u16.u32 %h0, %i0; cvt.u64.u16 %d0, %h0; mov.b64 {%o0, %r0}, %d0; or.b32 %o0, %o0, %r0;",
            &inputs,
            |x| x & 0xffff,
        );
        check("cvt.u16.u32 %h0, %i0; cvt.u32.u16 %o0, %h0;", &inputs, |x| x & 0xffff);
        check("cvt.u32.u8 %o0, %i0;", &inputs, |x| x & 0xff);
        check("cvt.s32.s8 %o0, %i0;", &inputs, |x| x as i8 as u32);
        check("cvt.u16.u32 %h0, %i0; cvt.s32.s16 %o0, %h0;", &inputs, |x| x as i16 as u32);
        check("cvt.s16.s8 %h0, %i0; cvt.u32.u16 %o0, %h0;", &inputs, |x| u32::from(x as i8 as u16));
        check("cvt.sat.u8.s32 %o0, %i0;", &inputs, |x| (x as i32).clamp(0, 255) as u32);
        check("cvt.sat.s16.s32 %o0, %i0;", &inputs, |x| (x as i32).clamp(-32768, 32767) as u32);
        check("cvt.sat.u32.s32 %o0, %i0;", &inputs, |x| (x as i32).max(0) as u32);
        check("cvt.u64.u32 %d0, %i0; shl.b64 %d0, %d0, 8; cvt.u32.u64 %o0, %d0;", &inputs, |x| x << 8);
    }
}

#[test]
fn integers_to_floats() {
    for seed in 0..4 {
        let inputs = [spread(seed)];
        check("cvt.rn.f32.s32 %f0, %i0; mov.b32 %o0, %f0;", &inputs, |x| (x as i32 as f32).to_bits());
        check("cvt.rn.f32.u32 %f0, %i0; mov.b32 %o0, %f0;", &inputs, |x| (x as f32).to_bits());
        check("cvt.rz.f32.u32 %f0, %i0; mov.b32 %o0, %f0;", &inputs, |x| {
            let near = x as f32;
            let exceeds = f64::from(near) > f64::from(x);
            (if exceeds { near.next_down() } else { near }).to_bits()
        });
        check("cvt.rp.f32.s32 %f0, %i0; mov.b32 %o0, %f0;", &inputs, |x| {
            let near = x as i32 as f32;
            (if f64::from(near) < f64::from(x as i32) { near.next_up() } else { near }).to_bits()
        });
        let wide = "mov.b64 %d0, {%i0, %i0}; ";
        let long = |x: u32| u64::from(x) << 32 | u64::from(x);
        check(&format!("{wide} cvt.rn.f32.u64 %f0, %d0; mov.b32 %o0, %f0;"), &inputs, |x| {
            (long(x) as f32).to_bits()
        });
        check(
            &format!("{wide} cvt.rn.f64.s64 %e0, %d0; cvt.rn.f32.f64 %f0, %e0; mov.b32 %o0, %f0;"),
            &inputs,
            |x| (long(x) as i64 as f64 as f32).to_bits(),
        );
        check("cvt.rn.f16.s32 %h0, %i0; cvt.u32.u16 %o0, %h0;", &inputs, |x| {
            u32::from(f16::from_f64(f64::from(x as i32)).to_bits())
        });
    }
}

#[test]
fn floats_to_integers() {
    type Rounding = fn(f64) -> f64;
    let roundings: [(&str, Rounding); 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for inputs in floats().map(|word| [word]) {
        for (name, round) in roundings {
            let value = |x: u32| round(f64::from(f32::from_bits(x)));
            let clamped = |x: u32, least: f64, most: f64| {
                let value = value(x);
                if value.is_nan() { 0 } else { value.clamp(least, most) as i64 as u32 }
            };
            let load = "mov.b32 %f0, %i0; ";
            check(&format!("{load} cvt.{name}.s32.f32 %o0, %f0;"), &inputs, |x| {
                clamped(x, f64::from(i32::MIN), f64::from(i32::MAX))
            });
            check(&format!("{load} cvt.{name}.u32.f32 %o0, %f0;"), &inputs, |x| {
                clamped(x, 0.0, f64::from(u32::MAX))
            });
            check(&format!("{load} cvt.{name}.u8.f32 %o0, %f0;"), &inputs, |x| clamped(x, 0.0, 255.0));
            check(&format!("{load} cvt.{name}.f32.f32 %f1, %f0; mov.b32 %o0, %f1;"), &inputs, |x| {
                let value = value(x) as f32;
                if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
            });
            check(&format!("{load} cvt.{name}.s64.f32 %d0, %f0; cvt.u32.u64 %o0, %d0;"), &inputs, |x| {
                if value(x).is_nan() { 0 } else { value(x) as i64 as u32 }
            });
        }
    }
}

/// The nearest of all halves by search: the reference has no bit tricks.
fn nearest(value: f32, all: &[(f64, u16)]) -> u16 {
    let value = f64::from(value);
    let above = all.partition_point(|&(half, _)| half < value);
    let (low, high) = (all[above.saturating_sub(1)], all[above.min(all.len() - 1)]);
    let (down, up) = (value - low.0, high.0 - value);
    if down < up || (down == up && low.1 & 1 == 0) { low.1 } else { high.1 }
}

#[test]
fn to_halves_and_back() {
    let mut f16s: Vec<(f64, u16)> = (0..=u16::MAX)
        .map(|bits| (f16::from_bits(bits).to_f64(), bits))
        .filter(|half| half.0.is_finite())
        .collect();
    let mut bf16s: Vec<(f64, u16)> = (0..=u16::MAX)
        .map(|bits| (bf16::from_bits(bits).to_f64(), bits))
        .filter(|half| half.0.is_finite())
        .collect();
    f16s.sort_by(|x, y| x.0.total_cmp(&y.0));
    bf16s.sort_by(|x, y| x.0.total_cmp(&y.0));
    for seed in 0..20 {
        // Exponents of f16's range and below, so that subnormals and ties are among them.
        let inputs = [lanes(|lane| {
            let bits = spread(seed)[lane as usize];
            let tie = if lane % 4 == 0 { bits & 0xffff_e000 | 0x1000 } else { bits };
            tie & 0x807f_ffff | (103 + (bits >> 26 & 31)) << 23
        })];
        let load = "mov.b32 %f0, %i0; ";
        check(&format!("{load} cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %o0, %h0;"), &inputs, |x| {
            u32::from(nearest(f32::from_bits(x), &f16s))
        });
        check(&format!("{load} cvt.rn.bf16.f32 %h0, %f0; cvt.u32.u16 %o0, %h0;"), &inputs, |x| {
            u32::from(nearest(f32::from_bits(x), &bf16s))
        });
        check(&format!("{load} mov.b32 %f1, 0f3F800000; cvt.rn.f16x2.f32 %o0, %f0, %f1;"), &inputs, |x| {
            u32::from(nearest(f32::from_bits(x), &f16s)) << 16 | 0x3c00
        });
        check(&format!("{load} mov.b32 %f1, 0f3F800000; cvt.rn.bf16x2.f32 %o0, %f1, %f0;"), &inputs, |x| {
            u32::from(nearest(f32::from_bits(x), &bf16s)) | 0x3f80_0000
        });
        check(&format!("{load} cvt.rz.bf16.f32 %h0, %f0; cvt.u32.u16 %o0, %h0;"), &inputs, |x| x >> 16);
        check(&format!("{load} cvt.rna.tf32.f32 %o0, %f0;"), &inputs, |x| (x + 0x1000) & !0x1fff);
    }
    for high in 0..64 {
        let inputs = [lanes(|lane| high << 10 | lane << 5 | high & 31)];
        let load = "cvt.u16.u32 %h0, %i0; ";
        check(&format!("{load} cvt.f32.f16 %f0, %h0; mov.b32 %o0, %f0;"), &inputs, |x| {
            let value = f16::from_bits(x as u16).to_f32();
            if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
        });
        check(&format!("{load} cvt.f32.bf16 %f0, %h0; mov.b32 %o0, %f0;"), &inputs, |x| {
            let value = f32::from_bits(x << 16);
            if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
        });
        check(&format!("{load} cvt.rzi.s32.f16 %o0, %h0;"), &inputs, |x| {
            f16::from_bits(x as u16).to_f32() as i32 as u32
        });
    }
}

#[test]
fn edges_of_halves() {
    let inputs = [lanes(|lane| {
        [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65519.0, 65520.0, f32::MAX, 1e-9, -1e-9]
            [lane as usize % 8]
            .to_bits()
    })];
    let out = run(
        "mov.b32 %f0, %i0; cvt.rn.f16.f32 %h0, %f0; cvt.u32.u16 %o0, %h0; cvt.rn.bf16.f32 %h1, %f0;
         cvt.u32.u16 %o1, %h1; cvt.rz.f16.f32 %h2, %f0; cvt.u32.u16 %o2, %h2; cvt.rn.relu.f16.f32 %h3, %f0;
         cvt.u32.u16 %o3, %h3; cvt.sat.f32.f32 %f1, %f0; mov.b32 %o4, %f1;",
        &inputs,
        5,
    );
    assert_eq!(out[0][..8], [0x7c00, 0xfc00, 0x7fff, 0x7bff, 0x7c00, 0x7c00, 0, 0x8000]);
    assert_eq!(out[1][..6], [0x7f80, 0xff80, 0x7fff, 0x4780, 0x4780, 0x7f80]);
    assert_eq!(out[2][..8], [0x7c00, 0xfc00, 0x7fff, 0x7bff, 0x7bff, 0x7bff, 0, 0x8000]);
    assert_eq!(out[3][..3], [0x7c00, 0, 0x7fff]);
    assert_eq!(out[4][..6], [1.0_f32.to_bits(), 0, 0, 0x3f80_0000, 0x3f80_0000, 0x3f80_0000]);
}
