//! The CPU's frozen products against the least time that this machine could take: `cargo bench --bench floor -- --help`.

mod ceilings;

use ceilings::Meter;
use molora::device::Cpu;
use molora::ops::base;
use std::time::Instant;

fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761) | 1;
    (0..len)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 17;
            s ^= s << 5;
            (s >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn main() {
    let cpu = Cpu::new().unwrap();
    let mut meter = Meter::new(2);
    for _ in 0..6 {
        let c = meter.round();
        println!("{:.1} GFLOP/s {:.1} GB/s", c.flops / 1e9, c.bytes / 1e9);
    }
    for (i, o) in [(4096, 4096), (2048, 5504), (2048, 2048)] {
        let w = values(1, i * o);
        let copies: Vec<_> =
            (0..(600 << 20) / (i * o * 4) + 1).map(|_| cpu.pack(o, i, &w).unwrap()).collect();
        for t in [1, 8, 64, 512, 2048] {
            let x = values(3, t * i);
            let mut y = vec![0f32; t * o];
            let sizes = base::Sizes { tokens: t, in_features: i, out_features: o, x_stride: i, y_stride: o };
            let mut times = Vec::new();
            for r in 0..(if t > 100 { 9 } else { 40 }) {
                let s = Instant::now();
                cpu.base(&sizes, &copies[r % copies.len()], None, &x, &mut y).unwrap();
                times.push(s.elapsed().as_secs_f64());
            }
            meter.round();
            times.sort_by(f64::total_cmp);
            let (m, b) = (times[times.len() / 2], times[0]);
            let ft = 2.0 * (t * i * o) as f64 / meter.best.flops;
            let fb = 4.0 * (i * o + t * i + t * o) as f64 / meter.best.bytes;
            let f = ft.max(fb);
            println!(
                "{i}x{o} t{t}: median {:.3} ms best {:.3} floor {:.3} (flops {:.3} bytes {:.3}) ratio {:.2} best {:.2}",
                m * 1e3,
                b * 1e3,
                f * 1e3,
                ft * 1e3,
                fb * 1e3,
                m / f,
                b / f
            );
        }
    }
}
