//! Integers, bits, floats, halves, predicates.

use crate::harness::{Word, lanes, run, spread};
use half::{bf16, f16};

/// Runs an instruction with operands `%i0`, `%i1`, `%i2` and compares each lane.
fn check(body: &str, expect: impl Fn(u32, u32, u32) -> u32) {
    for seed in 0..8 {
        let inputs: [Word; 3] = [spread(seed), spread(seed + 100), spread(seed + 200)];
        let out = run(body, &inputs, 1);
        for lane in 0..32 {
            let (a, b, c) = (inputs[0][lane], inputs[1][lane], inputs[2][lane]);
            let (got, due) = (out[0][lane], expect(a, b, c));
            assert_eq!(got, due, "{body}: {a:#x}, {b:#x}, {c:#x}: got {got:#x}, expected {due:#x}");
        }
    }
}

fn signed(f: impl Fn(i64, i64, i64) -> i64) -> impl Fn(u32, u32, u32) -> u32 {
    move |a, b, c| f(i64::from(a as i32), i64::from(b as i32), i64::from(c as i32)) as u32
}

fn unsigned(f: impl Fn(u64, u64, u64) -> u64) -> impl Fn(u32, u32, u32) -> u32 {
    move |a, b, c| f(u64::from(a), u64::from(b), u64::from(c)) as u32
}

#[test]
fn sums_and_products() {
    check("add.s32 %o0, %i0, %i1;", unsigned(|a, b, _| a.wrapping_add(b)));
    check("sub.u32 %o0, %i0, %i1;", unsigned(|a, b, _| a.wrapping_sub(b)));
    check("mul.lo.s32 %o0, %i0, %i1;", unsigned(|a, b, _| a * b));
    check("mul.hi.u32 %o0, %i0, %i1;", unsigned(|a, b, _| (a * b) >> 32));
    check("mul.hi.s32 %o0, %i0, %i1;", signed(|a, b, _| (a * b) >> 32));
    check("mad.lo.s32 %o0, %i0, %i1, %i2;", unsigned(|a, b, c| (a * b).wrapping_add(c)));
    check("mad.hi.s32 %o0, %i0, %i1, %i2;", signed(|a, b, c| ((a * b) >> 32) + c));
    check("mad.hi.u32 %o0, %i0, %i1, %i2;", unsigned(|a, b, c| ((a * b) >> 32) + c));
    check("mul24.lo.u32 %o0, %i0, %i1;", unsigned(|a, b, _| (a & 0xff_ffff) * (b & 0xff_ffff)));
    check("sad.s32 %o0, %i0, %i1, %i2;", signed(|a, b, c| (a - b).abs() + c));
    check("sad.u32 %o0, %i0, %i1, %i2;", unsigned(|a, b, c| a.abs_diff(b) + c));
    check("mul.wide.u32 %d0, %i0, %i1; cvt.u32.u64 %o0, %d0;", unsigned(|a, b, _| a * b));
    check("mul.wide.s32 %d0, %i0, %i1; mov.b64 {%r0, %o0}, %d0;", signed(|a, b, _| (a * b) >> 32));
    check(
        "cvt.u64.u32 %d1, %i2; mad.wide.s32 %d0, %i0, %i1, %d1; shr.s64 %d0, %d0, 32; cvt.u32.u64 %o0, %d0;",
        |a, b, c| ((i64::from(a as i32) * i64::from(b as i32)).wrapping_add(i64::from(c)) >> 32) as u32,
    );
    check("add.sat.s32 %o0, %i0, %i1;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    check("add.s32 %o0, %i0, -7;", |a, _, _| a.wrapping_sub(7));
}

#[test]
fn carries() {
    let wide = |a: u32, b: u32, c: u32| u128::from(a) << 64 | u128::from(b) << 32 | u128::from(c);
    let body = "add.cc.u32 %r0, %i2, %i1; addc.cc.u32 %r1, %i1, %i0; addc.u32 %o0, %i0, 0;";
    check(body, move |a, b, c| ((wide(a, b, c) + wide(0, a, b)) >> 64) as u32);
    let body = "sub.cc.u32 %r0, %i2, %i1; subc.cc.u32 %r1, %i1, %i0; subc.u32 %o0, %i0, 0;";
    check(body, move |a, b, c| (wide(a, b, c).wrapping_sub(wide(0, a, b)) >> 64) as u32);
    // 64 x 32 bits with carries: c + (a, b) * 3.
    let body = "mad.lo.cc.u32 %r0, %i1, 3, %i2; madc.hi.u32 %r1, %i1, 3, 0; mad.lo.u32 %o0, %i0, 3, %r1;";
    check(body, |a, b, c| ((((u128::from(a) << 32 | u128::from(b)) * 3) + u128::from(c)) >> 32) as u32);
}

#[test]
fn quotients_and_order() {
    let nonzero = "max.u32 %r1, %i1, 1; ";
    check(&format!("{nonzero} div.u32 %o0, %i0, %r1;"), |a, b, _| a / b.max(1));
    check(&format!("{nonzero} rem.u32 %o0, %i0, %r1;"), |a, b, _| a % b.max(1));
    let odd = "or.b32 %r1, %i1, 2; ";
    check(&format!("{odd} div.s32 %o0, %i0, %r1;"), |a, b, _| (a as i32).wrapping_div((b | 2) as i32) as u32);
    check(&format!("{odd} rem.s32 %o0, %i0, %r1;"), |a, b, _| (a as i32).wrapping_rem((b | 2) as i32) as u32);
    check("min.s32 %o0, %i0, %i1;", signed(|a, b, _| a.min(b)));
    check("max.s32 %o0, %i0, %i1;", signed(|a, b, _| a.max(b)));
    check("min.u32 %o0, %i0, %i1;", |a, b, _| a.min(b));
    check("abs.s32 %o0, %i0;", signed(|a, _, _| a.abs()));
    check("neg.s32 %o0, %i0;", signed(|a, _, _| -a));
}

#[test]
fn bits() {
    check("and.b32 %r0, %i0, %i1; or.b32 %r0, %r0, %i2; xor.b32 %o0, %r0, %i0;", |a, b, c| (a & b | c) ^ a);
    check("not.b32 %r0, %i0; cnot.b32 %r1, %i1; add.u32 %o0, %r0, %r1;", |a, b, _| {
        (!a).wrapping_add(u32::from(b == 0))
    });
    check("shl.b32 %o0, %i0, %i1;", |a, b, _| if b > 31 { 0 } else { a << b });
    check("shr.u32 %o0, %i0, %i1;", |a, b, _| if b > 31 { 0 } else { a >> b });
    check("shr.s32 %o0, %i0, %i1;", |a, b, _| (a as i32 >> b.min(31)) as u32);
    let both = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    check("shf.l.wrap.b32 %o0, %i0, %i1, %i2;", move |a, b, c| (both(a, b) << (c % 32) >> 32) as u32);
    check("shf.r.wrap.b32 %o0, %i0, %i1, %i2;", move |a, b, c| (both(a, b) >> (c % 32)) as u32);
    check("shf.l.clamp.b32 %o0, %i0, %i1, %i2;", move |a, b, c| (both(a, b) << c.min(32) >> 32) as u32);
    check("shf.r.clamp.b32 %o0, %i0, %i1, %i2;", move |a, b, c| (both(a, b) >> c.min(32)) as u32);
    check(
        "clz.b32 %r0, %i0; popc.b32 %r1, %i1; brev.b32 %r2, %i2; add.u32 %r0, %r0, %r1; add.u32 %o0, %r0, %r2;",
        |a, b, c| (a.leading_zeros() + b.count_ones()).wrapping_add(c.reverse_bits()),
    );
    check("bfind.u32 %o0, %i0;", |a, _, _| (0..32).rev().find(|bit| a >> bit & 1 == 1).unwrap_or(u32::MAX));
    check("lop3.b32 %o0, %i0, %i1, %i2, 0x96;", |a, b, c| a ^ b ^ c);
    check("lop3.b32 %o0, %i0, %i1, %i2, 0xe8;", |a, b, c| a & b | b & c | a & c);
    check("lop3.b32 %o0, %i0, %i1, %i2, 0x0d;", |a, b, c| !a & (b | !c));
}

/// The manual's loop for `bfe`, bit after bit.
fn bfe(a: u32, pos: u32, len: u32, signed: bool) -> u32 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let msb = 31;
    let bit = |at: u32| a >> at & 1;
    let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(msb)) };
    (0..=msb).fold(0, |d, i| d | if i < len && pos + i <= msb { bit(pos + i) } else { sign } << i)
}

#[test]
fn fields_and_bytes() {
    check("and.b32 %r1, %i1, 47; and.b32 %r2, %i2, 47; bfe.u32 %o0, %i0, %r1, %r2;", |a, b, c| {
        bfe(a, b & 47, c & 47, false)
    });
    check("and.b32 %r1, %i1, 47; and.b32 %r2, %i2, 47; bfe.s32 %o0, %i0, %r1, %r2;", |a, b, c| {
        bfe(a, b & 47, c & 47, true)
    });
    check("and.b32 %r1, %i1, 47; and.b32 %r2, %i2, 47; bfi.b32 %o0, %i0, %i1, %r1, %r2;", |a, b, c| {
        let (pos, len) = (b & 47, c & 47);
        (0..len)
            .filter(|i| pos + i <= 31 && *i < 32)
            .fold(b, |f, i| f & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
    });
    check("prmt.b32 %o0, %i0, %i1, %i2;", |a, b, c| {
        let bytes = [a.to_le_bytes(), b.to_le_bytes()].concat();
        u32::from_le_bytes(std::array::from_fn(|index| {
            let select = (c >> (4 * index) & 15) as usize;
            let byte = bytes[select & 7];
            if select < 8 {
                byte
            } else if byte > 127 {
                0xff
            } else {
                0
            }
        }))
    });
    check("dp4a.s32.u32 %o0, %i0, %i1, %i2;", |a, b, c| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        (0..4).fold(c, |sum, i| sum.wrapping_add((i32::from(a[i] as i8) * i32::from(b[i])) as u32))
    });
    check("mov.b32 {%h0, %h1}, %i0; mov.b32 %o0, {%h1, %h0};", |a, _, _| a.rotate_left(16));
    check("mov.b64 %d0, {%i0, %i1}; shr.u64 %d0, %d0, 16; mov.b64 {%o0, _}, %d0;", |a, b, _| {
        a >> 16 | b << 16
    });
}

#[test]
fn sixteen_bits() {
    let halves = "cvt.u16.u32 %h0, %i0; cvt.u16.u32 %h1, %i1; ";
    let check = |op: &str, expect: &dyn Fn(u16, u16) -> u16| {
        check(&format!("{halves} {op} cvt.u32.u16 %o0, %h2;"), |a, b, _| {
            u32::from(expect(a as u16, b as u16))
        });
    };
    check("add.s16 %h2, %h0, %h1;", &u16::wrapping_add);
    check("sub.s16 %h2, %h0, -1;", &|a, _| a.wrapping_add(1));
    check("mul.lo.s16 %h2, %h0, %h1;", &u16::wrapping_mul);
    check("mul.hi.s16 %h2, %h0, %h1;", &|a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16);
    check("min.s16 %h2, %h0, %h1;", &|a, b| (a as i16).min(b as i16) as u16);
    check("shr.s16 %h2, %h0, 3;", &|a, _| (a as i16 >> 3) as u16);
    check("shr.u16 %h2, %h0, 3;", &|a, _| a >> 3);
    check("shl.b16 %h2, %h0, 9;", &|a, _| a << 9);
    check("not.b16 %h2, %h0;", &|a, _| !a);
    check("neg.s16 %h2, %h0;", &|a, _| a.wrapping_neg());
    let body = format!("{halves} mul.wide.s16 %o0, %h0, %h1;");
    self::check(&body, |a, b, _| (i32::from(a as i16) * i32::from(b as i16)) as u32);
    let body = format!("{halves} mul.wide.u16 %o0, %h0, %h1;");
    self::check(&body, |a, b, _| (a & 0xffff) * (b & 0xffff));
    let body = format!("{halves} setp.lt.s16 %p0, %h0, %h1; selp.u32 %o0, 1, 0, %p0;");
    self::check(&body, |a, b, _| u32::from((a as i16) < b as i16));
}

#[test]
fn predicates() {
    check("setp.lt.u32 %p0, %i0, %i1; selp.b32 %o0, %i1, %i2, %p0;", |a, b, c| if a < b { b } else { c });
    check("setp.ge.and.s32 %p0|%p1, %i0, %i1, %p2; selp.u32 %o0, 1, 0, %p1;", |_, _, _| 0);
    let body = "setp.ne.u32 %p3, %i2, 0; setp.gt.or.s32 %p0|%p1, %i0, %i1, !%p3; selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 2, 0, %p1; add.u32 %o0, %r0, %r1;";
    check(body, |a, b, c| {
        let (found, other) = (a as i32 > b as i32, c == 0);
        u32::from(found || other) + 2 * u32::from(!found || other)
    });
    let body = "setp.eq.u32 %p0, %i0, %i1; setp.hi.u32 %p1, %i0, %i2; xor.pred %p2, %p0, %p1; not.pred %p2, %p2; and.pred %p2, %p2, %p1; selp.u32 %o0, 1, 0, %p2;";
    check(body, |a, b, c| u32::from(((a == b) == (a > c)) && a > c));
    check("set.lt.u32.s32 %o0, %i0, %i1;", |a, b, _| if (a as i32) < b as i32 { u32::MAX } else { 0 });
    check("slct.u32.s32 %o0, %i0, %i1, %i2;", |a, b, c| if c as i32 >= 0 { a } else { b });
    check(
        "mov.u32 %o0, %i1; setp.eq.u32 %p0, %i0, 0; @%p0 mov.u32 %o0, 5; @!%p0 add.u32 %o0, %o0, 1;",
        |a, b, _| {
            if a == 0 { 5 } else { b.wrapping_add(1) }
        },
    );
}

/// Floats with every kind of edge.
fn floats(seed: u32) -> Word {
    const EDGES: [f32; 12] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-40,
        0.1,
        -3.5,
    ];
    let random = spread(seed);
    let moderate = |bits: u32| f32::from_bits(bits & 0x81ff_ffff | 0x3e00_0000);
    (0..32)
        .map(|lane| match (lane + seed as usize) % 3 {
            0 => EDGES[random[lane] as usize % 12].to_bits(),
            1 => random[lane],
            _ => moderate(random[lane]).to_bits(),
        })
        .collect()
}

fn check_floats(op: &str, expect: impl Fn(f32, f32, f32) -> f32) {
    let body = format!("mov.b32 %f0, %i0; mov.b32 %f1, %i1; mov.b32 %f2, %i2; {op} mov.b32 %o0, %f3;");
    for seed in 0..16 {
        let inputs = [floats(seed), floats(seed + 50), floats(seed + 90)];
        let out = run(&body, &inputs, 1);
        for lane in 0..32 {
            let [a, b, c] = [0, 1, 2].map(|index: usize| f32::from_bits(inputs[index][lane]));
            let (got, due) = (f32::from_bits(out[0][lane]), expect(a, b, c));
            let same = got.to_bits() == due.to_bits() || (due.is_nan() && got.is_nan());
            assert!(same, "{op} {a:e}, {b:e}, {c:e}: got {got:e}, expected {due:e}");
        }
    }
}

#[test]
fn singles() {
    check_floats("add.f32 %f3, %f0, %f1;", |a, b, _| a + b);
    check_floats("sub.rn.f32 %f3, %f0, %f1;", |a, b, _| a - b);
    check_floats("mul.f32 %f3, %f0, %f1;", |a, b, _| a * b);
    check_floats("fma.rn.f32 %f3, %f0, %f1, %f2;", f32::mul_add);
    check_floats("div.rn.f32 %f3, %f0, %f1;", |a, b, _| a / b);
    check_floats("rcp.rn.f32 %f3, %f0;", |a, _, _| 1.0 / a);
    check_floats("sqrt.rn.f32 %f3, %f0;", |a, _, _| a.sqrt());
    check_floats("neg.f32 %f3, %f0;", |a, _, _| -a);
    check_floats("abs.f32 %f3, %f0;", |a, _, _| a.abs());
    let flush = |x: f32| if x.is_subnormal() { 0.0_f32.copysign(x) } else { x };
    check_floats("add.ftz.f32 %f3, %f0, %f1;", move |a, b, _| flush(flush(a) + flush(b)));
    check_floats("fma.rn.sat.f32 %f3, %f0, %f1, %f2;", |a, b, c| {
        let value = a.mul_add(b, c);
        if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
    });
    check_floats("copysign.f32 %f3, %f0, %f1;", |a, b, _| b.copysign(a));
    check_floats("ex2.approx.f32 %f3, 0f40400000;", |_, _, _| 8.0);
    check_floats("max.NaN.f32 %f3, %f0, %f1;", |a, b, _| {
        if a.is_nan() || b.is_nan() { f32::NAN } else { order(a, b).1 }
    });
    check_floats("min.f32 %f3, %f0, %f1;", |a, b, _| {
        if a.is_nan() {
            b
        } else if b.is_nan() {
            a
        } else {
            order(a, b).0
        }
    });
    check_floats("max.f32 %f3, %f0, %f1;", |a, b, _| {
        if a.is_nan() {
            b
        } else if b.is_nan() {
            a
        } else {
            order(a, b).1
        }
    });
}

/// The lesser and the greater, -0 below +0.
fn order(a: f32, b: f32) -> (f32, f32) {
    if a.total_cmp(&b).is_le() { (a, b) } else { (b, a) }
}

/// A rounding that is right if it is on the due side of the exact value and its neighbour is not nearer to it.
#[test]
fn directed_rounding() {
    let moderate =
        |seed| -> Word { floats(seed).iter().map(|bits| bits & 0x81ff_ffff | 0x3e00_0000).collect() };
    for (name, up) in [("rm", Some(false)), ("rp", Some(true)), ("rz", None)] {
        for seed in 0..16 {
            let inputs = [moderate(seed), moderate(seed + 50), moderate(seed + 90)];
            let body = format!(
                "mov.b32 %f0, %i0; mov.b32 %f1, %i1; mov.b32 %f2, %i2; fma.{name}.f32 %f3, %f0, %f1, %f2; mov.b32 %o0, %f3;"
            );
            let out = run(&body, &inputs, 1);
            for lane in 0..32 {
                let [a, b, c] = [0, 1, 2].map(|index: usize| f64::from(f32::from_bits(inputs[index][lane])));
                // These exponents are close enough for an exact product and an almost exact sum in f64.
                let exact = a * b + c;
                let got = f32::from_bits(out[0][lane]);
                let up = up.unwrap_or(exact < 0.0);
                let (inner, outer) = if up { (got.next_down(), got) } else { (got.next_up(), got) };
                let right = |x: f64, y: f64| if up { x <= y } else { x >= y };
                assert!(right(exact, f64::from(outer)), "{name} {a:e} {b:e} {c:e}: {got:e} for {exact:e}");
                assert!(!right(exact, f64::from(inner)), "{name} {a:e} {b:e} {c:e}: {got:e} for {exact:e}");
            }
        }
    }
}

#[test]
fn doubles() {
    let load = "mov.b32 %f0, %i0; mov.b32 %f1, %i1; mov.b32 %f2, %i2; cvt.f64.f32 %e0, %f0; cvt.f64.f32 %e1, %f1; cvt.f64.f32 %e2, %f2;";
    let check = |op: &str, expect: fn(f64, f64, f64) -> f64| {
        let body = format!("{load} {op} cvt.rn.f32.f64 %f3, %e3;");
        check_floats(&body, move |a, b, c| expect(f64::from(a), f64::from(b), f64::from(c)) as f32);
    };
    check("add.f64 %e3, %e0, %e1;", |a, b, _| a + b);
    check("mul.f64 %e3, %e0, %e1;", |a, b, _| a * b);
    check("fma.rn.f64 %e3, %e0, %e1, %e2;", f64::mul_add);
    check("div.rn.f64 %e3, %e0, %e1;", |a, b, _| a / b);
    check("mul.f64 %e3, %e0, 0d3FE0000000000000;", |a, _, _| a * 0.5);
}

#[test]
fn comparisons_with_nan() {
    type Test = fn(f32, f32) -> bool;
    let tests: [(&str, Test); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (name, test) in tests {
        let op = format!("setp.{name}.f32 %p0, %f0, %f1; selp.f32 %f3, 0f3F800000, 0f00000000, %p0;");
        check_floats(&op, |a, b, _| f32::from(u8::from(test(a, b))));
    }
    check_floats("testp.finite.f32 %p0, %f0; selp.f32 %f3, 0f3F800000, 0f00000000, %p0;", |a, _, _| {
        f32::from(u8::from(a.is_finite()))
    });
}

/// Every operation on halves rounds once: what f64 computes exactly, or nearly, is the reference.
#[test]
fn halves() {
    let inputs: Vec<Word> = (0..3_u32)
        .map(|seed| lanes(|lane| spread(seed + 7)[lane as usize] & 0xbfff_bfff ^ (lane << 4)))
        .collect();
    type Operation = fn(f64, f64, f64) -> f64;
    let operations: [(&str, usize, Operation); 6] = [
        ("add", 2, |a, b, _| a + b),
        ("sub", 2, |a, b, _| a - b),
        ("mul", 2, |a, b, _| a * b),
        ("fma.rn", 3, |a, b, c| a * b + c),
        ("min", 2, |a, b, _| if a <= b { a } else { b }),
        ("max", 2, |a, b, _| if a >= b { a } else { b }),
    ];
    for (name, count, operation) in operations {
        for (ty, is_bf16) in [("f16", false), ("bf16", true)] {
            let operands = ["%i0", "%i1", "%i2"][..count].join(", ");
            let packed = run(&format!("{name}.{ty}x2 %o0, {operands};"), &inputs, 1);
            let unpack = "mov.b32 {%h0, _}, %i0; mov.b32 {%h1, _}, %i1; mov.b32 {%h2, _}, %i2;";
            let operands = ["%h0", "%h1", "%h2"][..count].join(", ");
            let body = format!("{unpack} {name}.{ty} %h3, {operands}; cvt.u32.u16 %o0, %h3;");
            let single = run(&body, &inputs, 1);
            for lane in 0..32 {
                let half = |shift: u32| {
                    let [a, b, c] = [0, 1, 2].map(|index: usize| {
                        let bits = (inputs[index][lane] >> shift) as u16;
                        if is_bf16 { bf16::from_bits(bits).to_f64() } else { f16::from_bits(bits).to_f64() }
                    });
                    let value = operation(a, b, c);
                    if value.is_nan() {
                        return 0x7fff;
                    }
                    // Through f32 where that is exact enough: sums and products of halves fit twice over.
                    let bits = if is_bf16 {
                        bf16::from_f64(value).to_bits()
                    } else {
                        f16::from_f64(value).to_bits()
                    };
                    u32::from(bits)
                };
                let due = half(0) | half(16) << 16;
                assert_eq!(
                    packed[0][lane], due,
                    "{name}.{ty}x2 lane {lane}: {:#x} {:#x}",
                    packed[0][lane], due
                );
                assert_eq!(single[0][lane], half(0), "{name}.{ty} lane {lane}");
            }
        }
    }
    let out = run("neg.bf16x2 %o0, %i0; abs.f16x2 %o1, %i0;", &inputs[..1], 2);
    assert!((0..32).all(|lane| out[0][lane] == inputs[0][lane] ^ 0x8000_8000));
    assert!((0..32).all(|lane| out[1][lane] == inputs[0][lane] & 0x7fff_7fff));
}

#[test]
fn comparisons_of_halves() {
    let inputs: Vec<Word> =
        (0..2_u32).map(|seed| lanes(|lane| spread(seed + 3)[lane as usize % 7])).collect();
    let body = "set.le.f16x2.f16x2 %o0, %i0, %i1; setp.gt.f16x2 %p0|%p1, %i0, %i1; selp.u32 %o1, 1, 0, %p0; selp.u32 %o2, 1, 0, %p1;
         { .reg.b16 a,b,c; .reg.pred p; mov.b32 {a, _}, %i0; mov.b32 {b, _}, %i1; set.neu.bf16.bf16 c, a, b; cvt.u32.u16 %o3, c;
           setp.lt.f16 p, a, b; selp.u32 %o4, 1, 0, p; }";
    let out = run(body, &inputs, 5);
    for lane in 0..32 {
        let (a, b) = (inputs[0][lane], inputs[1][lane]);
        let half = |bits: u32, shift: u32| f16::from_bits((bits >> shift) as u16);
        let (low, high) = ((half(a, 0), half(b, 0)), (half(a, 16), half(b, 16)));
        let one = |on: bool, bits: u32| if on { bits } else { 0 };
        let bf16s = (bf16::from_bits(a as u16), bf16::from_bits(b as u16));
        let due = [
            one(low.0 <= low.1, 0x3c00) | one(high.0 <= high.1, 0x3c00_0000),
            one(low.0 > low.1, 1),
            one(high.0 > high.1, 1),
            one(bf16s.0 != bf16s.1, 0x3f80),
            one(low.0 < low.1, 1),
        ];
        assert_eq!(out.iter().map(|word| word[lane]).collect::<Vec<_>>(), due, "{a:#x} {b:#x}");
    }
}

#[test]
fn directed_quotients_and_roots() {
    let down = |exact: f64| {
        let near = exact as f32;
        if f64::from(near) > exact { near.next_down() } else { near }
    };
    let input = lanes(|lane| (lane as f32 + 1.0).to_bits());
    let body = "mov.b32 %f0, %i0; mov.f32 %f1, 0f40E00000; div.rz.f32 %f2, %f1, %f0; sqrt.rm.f32 %f3, %f0; rcp.rp.f32 %f4, %f0;
         mov.b32 %o0, %f2; mov.b32 %o1, %f3; mov.b32 %o2, %f4;";
    let out = run(body, &[input], 3);
    for (lane, &quotient) in out[0].iter().enumerate() {
        let value = lane as f64 + 1.0;
        let below = down(1.0 / value);
        let above = if f64::from(below) < 1.0 / value { below.next_up() } else { below };
        let due = [down(7.0 / value), down(value.sqrt()), above].map(f32::to_bits);
        assert_eq!([quotient, out[1][lane], out[2][lane]], due, "lane {lane}");
    }
}

#[test]
fn selections_and_comparisons_flush_subnormals() {
    let values = lanes(|lane| [-1e-40_f32, 1e-40, -1.0, 0.0][lane as usize % 4].to_bits());
    let body = "mov.b32 %f0, %i0; slct.f32.f32 %f1, 0f3F800000, 0f40000000, %f0; mov.b32 %o0, %f1;
         slct.ftz.f32.f32 %f1, 0f3F800000, 0f40000000, %f0; mov.b32 %o1, %f1;
         mov.u32 %r1, 0x8001; cvt.u16.u32 %h0, %r1; mov.b16 %h1, 0;
         setp.eq.f16 %p0, %h0, %h1; selp.u32 %o2, 1, 0, %p0; setp.eq.ftz.f16 %p0, %h0, %h1; selp.u32 %o3, 1, 0, %p0;";
    let out = run(body, &[values], 4);
    let (one, two) = (1.0_f32.to_bits(), 2.0_f32.to_bits());
    assert_eq!(out[0][..4], [two, one, two, one]);
    assert_eq!(out[1][..4], [one, one, two, one]);
    assert_eq!((out[2][0], out[3][0]), (0, 1));
}
