//! Choices of kernels on WebGPU: what a device has and its table does not take gives right answers too, and where two ways
//! must agree they agree in every bit.
#![cfg(feature = "wgpu")]

use half::f16;
use molora::Wgpu;
use molora::device::wgpu::trace::Command;
use molora::device::wgpu::{Path, Tuning, View};
use molora::element::ElementType;
use molora::ops::base;
use molora_check::subject::WgpuSubject;
use molora_check::{Case, Op, Outcome, check};

/// Every adapter that opens.
fn devices() -> Vec<Wgpu> {
    // Panics where MOLORA_REQUIRE names a device that is not there.
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    Wgpu::adapters().iter().map(|adapter| Wgpu::open(adapter).unwrap()).collect()
}

fn tuned(wgpu: &Wgpu, change: impl Fn(Tuning) -> Tuning) -> Option<Wgpu> {
    wgpu.tuned(change(*wgpu.tuning())).ok()
}

/// Seeded f16 with these bits of the exponent, of which there are fewer than all.
fn halves(seed: u32, len: usize, exponent: u16) -> Vec<f16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 16) as u16
    };
    (0..len).map(|_| f16::from_bits(next() & (0x83ff | exponent))).collect()
}

fn base_bits(wgpu: &Wgpu, (tokens, width): (usize, usize), [x, w]: [u16; 2]) -> Vec<u16> {
    let (x, w) = (halves(1, tokens * width, x), halves(2, width * width, w));
    let y = vec![f16::NAN; tokens * width];
    let [x, w, y] = [&x, &w, &y].map(|v| wgpu.upload(v).unwrap());
    let sizes =
        base::Sizes { tokens, in_features: width, out_features: width, x_stride: width, y_stride: width };
    let len = tokens * width;
    let (x, w) = (View::<f16>::new(&x, 0, len).unwrap(), View::new(&w, 0, width * width).unwrap());
    let mut encoder = wgpu.encoder();
    wgpu.base(&mut encoder, &sizes, w, None, x, View::new(&y, 0, len).unwrap()).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    wgpu.download::<f16>(&y, len).unwrap().iter().map(|v| v.to_bits()).collect()
}

#[test]
fn f16_loads_as_its_words_do() {
    let mut compared = 0;
    for wgpu in devices() {
        for path in [Path::Tiles, Path::Lanes] {
            let way = |f16| tuned(&wgpu, |t| Tuning { path, f16, ..t });
            let (Some(words), Some(halves)) = (way(false), way(true)) else { continue };
            // Few and many tokens; rows read by fours, and one by one.
            for (tokens, width) in [(2, 64), (20, 64), (2, 38), (20, 38)] {
                // Large times small numbers; and subnormal ones times large, which are lost where they count as zeros.
                for exponents in [[0x7800, 0x0c00], [0, 0x7800], [0x7800, 0]] {
                    let [words, halves] =
                        [&words, &halves].map(|way| base_bits(way, (tokens, width), exponents));
                    assert_eq!(words, halves, "{path:?}, {tokens} tokens, {width} wide, {}", wgpu.describe());
                    assert!(words.iter().any(|&bits| bits & 0x7fff != 0), "nothing but zeros");
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} pairs of ways");
}

#[test]
fn a_choice_that_the_device_lacks_is_refused() {
    for wgpu in devices() {
        let (features, tuning) = (wgpu.device().features(), *wgpu.tuning());
        let lanes = wgpu.tuned(Tuning { path: Path::Lanes, ..tuning });
        assert_eq!(lanes.is_ok(), features.contains(wgpu::Features::SUBGROUP));
        let odd = wgpu.tuned(Tuning { path: Path::Matrix, matrix: Some(5), ..tuning });
        let why = odd.unwrap_err().to_string();
        assert!(why.contains("cooperative matrices of that shape"), "{why}");
    }
}

/// A device that was created without features gets the forms that do without, and says so.
#[test]
fn a_bare_device_takes_tiles() {
    for adapter in Wgpu::adapters() {
        let descriptor = wgpu::DeviceDescriptor::default();
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let wgpu = Wgpu::from_device(adapter.get_info(), device, queue);
        assert!(wgpu.tuning().to_string().contains("tiles, no subgroups, no f16"), "{}", wgpu.tuning());
        let bits = base_bits(&wgpu, (20, 38), [0x7800, 0x0c00]);
        let own = Wgpu::open(&adapter).unwrap();
        let tiles = tuned(&own, |t| Tuning { path: Path::Tiles, subgroups: false, f16: false, ..t }).unwrap();
        assert_eq!(bits, base_bits(&tiles, (20, 38), [0x7800, 0x0c00]));
    }
}

#[test]
fn sums_in_subgroups_and_as_trees_are_right_for_few_rows() {
    for wgpu in devices() {
        for subgroups in [false, true] {
            let Some(wgpu) = tuned(&wgpu, |t| Tuning { path: Path::Tiles, subgroups, ..t }) else { continue };
            let subject = WgpuSubject::new(wgpu);
            for op in [Op::Base, Op::Shrink, Op::Route, Op::Fused] {
                for (tokens, in_features) in [(1, 3), (1, 64), (3, 255), (2, 257), (4, 1030)] {
                    let case = Case { tokens, in_features, ..Case::new(op) };
                    match check(&subject, &case) {
                        Outcome::Right(_) => (),
                        Outcome::Wrong(why) | Outcome::Unsupported(why) => panic!("{case}: {why}"),
                    }
                }
            }
        }
    }
}

/// Where the adapter lists a square shape of f16 into f32; elsewhere nothing can be tested, which is said.
#[test]
fn base_by_matrices() {
    for adapter in Wgpu::adapters() {
        let wgpu = match Wgpu::open_with_matrices(&adapter) {
            Ok(wgpu) => wgpu,
            Err(why) => {
                println!("not tested: {why}");
                continue;
            }
        };
        println!("{}: {}", wgpu.describe(), wgpu.tuning());
        let subject = WgpuSubject::new(wgpu.clone());
        for tokens in [15, 16, 17, 63, 64, 65] {
            // Columns of a last workgroup: just enough for a matrix, and too few.
            for (in_features, out_features) in [(16, 16), (48, 18), (64, 64), (16, 66), (16, 80), (128, 154)]
            {
                let element = molora::ElementType::F16;
                let case = Case { tokens, in_features, out_features, x: element, ..Case::new(Op::Base) };
                match check(&subject, &case) {
                    Outcome::Right(_) => (),
                    Outcome::Wrong(why) | Outcome::Unsupported(why) => panic!("{case}: {why}"),
                }
            }
        }
        let texts = wgpu.shader_texts();
        assert!(texts.iter().any(|(name, _)| name.starts_with("base_matrix")), "no case took matrices");
    }
}

/// Which kernel expands, and that it is right across the edges of its shares: more tokens than one workgroup takes on lanes, a
/// last column block of half a lane.
#[test]
fn expand_takes_lanes_for_whole_fours_of_f32() {
    for wgpu in devices() {
        for (element, out_features) in
            [(ElementType::F32, 68), (ElementType::F32, 70), (ElementType::F16, 68)]
        {
            let traced = wgpu.traced();
            let case = Case { tokens: 300, out_features, ..Case::new(Op::Expand) }.element(element);
            let outcome = check(&WgpuSubject::new(traced.clone()), &case);
            assert!(matches!(outcome, Outcome::Right(_)), "{case}: {outcome:?}");
            let entry = |command: &Command| match command {
                Command::Dispatch(dispatch) => dispatch.entry.starts_with("expand").then_some(dispatch.entry),
                Command::Clear { .. } => None,
            };
            let kernels: Vec<_> = traced.take_trace().commands.iter().filter_map(entry).collect();
            let sums_in_y = wgpu.tuning().path == Path::Lanes
                && element == ElementType::F32
                && out_features.is_multiple_of(4_usize);
            assert_eq!(kernels, [if sums_in_y { "expand_lanes" } else { "expand_many" }], "{case}");
        }
    }
}

/// An expert's last routes are few or many: two kernels' paths on lanes, a part of a tile elsewhere.
#[test]
fn shrink_is_right_at_the_edges_of_its_tiles() {
    for wgpu in devices() {
        for tokens in [1, 2, 15, 16, 17, 31, 63, 64, 65, 79, 80, 81] {
            for element in ElementType::ALL {
                let case = Case { tokens, top_k: 1, experts: 1, ..Case::new(Op::Shrink) }.element(element);
                let outcome = check(&WgpuSubject::new(wgpu.clone()), &case);
                assert!(matches!(outcome, Outcome::Right(_)), "{case}: {outcome:?}");
            }
        }
    }
}
