//! The kernels that measure a device's ceilings: what they count is what they do. No time is looked at.

#![cfg(feature = "cuda")]

use molora::device::Cuda;
use molora::device::cuda::{CEILING_THREADS, View, ViewMut};
use molora::element::ElementType;

fn cuda() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(e) => {
            let required = std::env::var("MOLORA_REQUIRE").unwrap_or_default();
            assert!(!required.contains("cuda"), "{e}");
            println!("ignored: {e}");
            None
        }
    }
}

#[test]
fn every_multiply_add_is_done() {
    let Some(cuda) = cuda() else { return };
    let threads = 2 * CEILING_THREADS;
    for element in ElementType::ALL {
        for steps in [0, 1, 3] {
            let mut memory = cuda.upload(&vec![f32::NAN; threads]).unwrap();
            let mut sums = ViewMut::whole(&cuda, &mut memory).unwrap();
            let done = cuda.ceiling_multiply(element, steps, &mut sums);
            drop(sums);
            if element != ElementType::F32 && !cuda.offer().has_mma(element, element) {
                assert!(done.unwrap_err().to_string().contains("tensor cores"));
                continue;
            }
            // Every chain of a thread adds 1 in each of its multiply-adds, of a warp's products in all four places.
            let (start, adds) = if element == ElementType::F32 { (120, 16 * 8) } else { (0, 32 * 4) };
            let expected = start as f32 + (adds * steps) as f32;
            let got = cuda.download(&memory, threads).unwrap();
            assert!(got.iter().all(|&sum| sum == expected), "{element}, {steps} steps: {expected} {got:?}");
            // A thread's place in a tile of 16 x 8 is the sum of 16 products.
            let a_sum = if element == ElementType::F32 { 1 } else { 16 };
            let flops = 2.0 * f64::from(adds * steps * a_sum) * threads as f64;
            assert_eq!(done.unwrap(), flops, "{element}, {steps} steps");
        }
    }
}

#[test]
fn every_word_is_read() {
    let Some(cuda) = cuda() else { return };
    let threads = 2 * CEILING_THREADS;
    for steps in [0usize, 1, 3] {
        let words: Vec<f32> = (0..steps * 16 * threads).map(|i| (i % 11) as f32).collect();
        let memory = cuda.upload(&words).unwrap();
        let mut held = cuda.upload(&vec![f32::NAN; threads]).unwrap();
        let mut sums = ViewMut::whole(&cuda, &mut held).unwrap();
        let view = View::new(&cuda, memory.slice(..words.len())).unwrap();
        assert_eq!(cuda.ceiling_read(&view, &mut sums).unwrap(), words.len() as f64 * 4.0);
        drop((view, sums));
        let got = cuda.download(&held, threads).unwrap();
        for (thread, sum) in got.iter().enumerate() {
            let own = (0..4 * steps).flat_map(|i| (0..4).map(move |w| 4 * (i * threads + thread) + w));
            assert_eq!(*sum, own.map(|i| words[i]).sum::<f32>(), "thread {thread}, {steps} steps");
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let Some(cuda) = cuda() else { return };
    let mut held = cuda.upload(&[0f32; CEILING_THREADS]).unwrap();
    let memory = cuda.upload(&[0f32; 16 * CEILING_THREADS]).unwrap();
    let mut part = ViewMut::new(&cuda, held.slice_mut(..100)).unwrap();
    let refused = cuda.ceiling_multiply(ElementType::F32, 1, &mut part).unwrap_err().to_string();
    assert_eq!(refused, "ceiling: sums: expected a multiple of 256, got 100");
    drop(part);
    let mut sums = ViewMut::whole(&cuda, &mut held).unwrap();
    let view = View::new(&cuda, memory.slice(1..)).unwrap();
    assert!(
        cuda.ceiling_read(&view, &mut sums).unwrap_err().to_string().contains("a multiple of 4096 words")
    );
    let view = View::new(&cuda, memory.slice(..0)).unwrap();
    assert_eq!(cuda.ceiling_read(&view, &mut sums).unwrap(), 0.0);
}
