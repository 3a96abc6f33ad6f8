//! Small kernels: each thread has input words `%i0`.. and output words `%o0`.., a block may have more than one warp.

use ptx_machine::counters::Counters;
use ptx_machine::exec::{self, Setup};
use ptx_machine::fault::{Fault, Kind};
use ptx_machine::memory::Device;
use ptx_machine::ptx;

/// One word of each thread.
pub type Word = Vec<u32>;

/// A kernel `k` around a body; `%p0`.., `%h0`.. (16 bits), `%r0`.., `%f0`.., `%d0`.. (64 bits) and `%e0`.. (f64) are free.
pub fn text(body: &str, inputs: usize, outputs: usize, threads: usize) -> String {
    let mut text = String::from(
        ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 in, .param .u64 out)\n{\n\
         .reg .pred %p<40>; .reg .b16 %h<40>; .reg .b32 %r<80>; .reg .f32 %f<40>; .reg .b64 %d<40>; .reg .f64 %e<40>;\n\
         .reg .b32 %i<40>; .reg .b32 %o<40>; .reg .b64 %at<3>; .reg .b32 %tid;\n\
         ld.param.u64 %at0, [in]; ld.param.u64 %at1, [out]; mov.u32 %tid, %tid.x;\n\
         mul.wide.u32 %at2, %tid, 4; add.u64 %at0, %at0, %at2; add.u64 %at1, %at1, %at2;\n",
    );
    for index in 0..inputs {
        text += &format!("ld.global.u32 %i{index}, [%at0+{}];\n", index * threads * 4);
    }
    for index in 0..outputs {
        text += &format!("mov.u32 %o{index}, 0;\n");
    }
    text += body;
    for index in 0..outputs {
        text += &format!("\nst.global.u32 [%at1+{}], %o{index};", index * threads * 4);
    }
    text + "\nret;\n}\n"
}

/// The line of the text in which a piece of it stands first.
pub fn line_of(text: &str, piece: &str) -> u32 {
    text.lines().position(|line| line.contains(piece)).unwrap_or_else(|| panic!("no `{piece}`")) as u32 + 1
}

/// Runs a text made by [`text`].
pub fn launch(
    text: &str,
    inputs: &[Word],
    outputs: usize,
    setup: Setup,
) -> Result<(Vec<Word>, Counters), Fault> {
    let module = ptx::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let threads = setup.block[0] as usize;
    let mut device = Device::default();
    let input = device.alloc((inputs.len() * threads * 4).max(4) as u64);
    let output = device.alloc((outputs * threads * 4).max(4) as u64);
    let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    device.write(input, &bytes).unwrap();
    let params = [input, output].iter().flat_map(|address| address.to_le_bytes()).collect();
    let counters = exec::run(&module, "k", &Setup { params, ..setup }, &mut device)?;
    let mut bytes = vec![0; outputs * threads * 4];
    device.read(output, &mut bytes).unwrap();
    let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    Ok((words.chunks(threads).map(<[u32]>::to_vec).collect(), counters))
}

/// Runs a body in blocks of `threads` threads, with these inputs.
pub fn run_threads(body: &str, threads: usize, inputs: &[Word], outputs: usize) -> Result<Vec<Word>, Fault> {
    let text = text(body, inputs.len(), outputs, threads);
    let setup = Setup { block: [threads as u32, 1, 1], max_instructions: 1 << 22, ..Setup::default() };
    launch(&text, inputs, outputs, setup).map(|(words, _)| words)
}

/// Runs a body in one warp.
pub fn run(body: &str, inputs: &[Word], outputs: usize) -> Vec<Word> {
    run_threads(body, 32, inputs, outputs).unwrap_or_else(|fault| panic!("{fault}"))
}

/// The fault that a body must end in, and the text that it ran as.
pub fn fault(body: &str, threads: usize) -> (Fault, String) {
    let text = text(body, 0, 1, threads);
    let setup = Setup { block: [threads as u32, 1, 1], max_instructions: 1 << 16, ..Setup::default() };
    let fault = launch(&text, &[], 1, setup).map(|_| ()).expect_err("a fault is due");
    (fault, text)
}

/// Asserts a fault's kind and the line that it names.
pub fn assert_fault(body: &str, threads: usize, kind: Kind, piece: &str) -> Fault {
    let (fault, text) = fault(body, threads);
    assert_eq!(fault.kind, kind, "{fault}");
    assert_eq!(fault.line, line_of(&text, piece), "{fault}");
    assert!(fault.text.contains(piece), "{fault}");
    assert_eq!(fault.kernel, "k");
    fault
}

/// 32 words by lane.
pub fn lanes(value: impl Fn(u32) -> u32) -> Word {
    (0..32).map(value).collect()
}

/// Values in which edges are frequent.
pub fn spread(seed: u32) -> Word {
    const EDGES: [u32; 10] =
        [0, 1, 2, 31, 32, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x0000_8000, 0xffff_7fff];
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    lanes(|lane| lane)
        .into_iter()
        .map(|lane| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            if (lane + seed).is_multiple_of(3) { EDGES[(state % 10) as usize] } else { state }
        })
        .collect()
}
