//! Barriers, memory and blocks that run at once.

use crate::harness::{Word, lanes, launch, run, run_threads, text};
use ptx_machine::exec::{self, Setup};
use ptx_machine::memory::Device;
use ptx_machine::ptx;

#[test]
fn a_barrier_orders_shared_memory() {
    let body = ".shared .align 4 .b8 words[512];
         mov.u32 %r0, words; shl.b32 %r1, %tid, 2; add.u32 %r1, %r1, %r0; st.shared.u32 [%r1], %tid; bar.sync 0;
         xor.b32 %r2, %tid, 127; shl.b32 %r2, %r2, 2; add.u32 %r2, %r2, %r0; ld.shared.u32 %o0, [%r2];";
    for _ in 0..4 {
        let out = run_threads(body, 128, &[], 1).unwrap();
        assert_eq!(out[0], (0..128).map(|thread| 127 - thread).collect::<Word>());
    }
}

#[test]
fn reductions_at_barriers() {
    let body = "setp.lt.u32 %p0, %tid, 70; bar.red.popc.u32 %o0, 0, %p0; bar.red.and.pred %p1, 1, %p0;
         bar.red.or.pred %p2, 2, !%p0; selp.u32 %o1, 1, 0, %p1; selp.u32 %o2, 1, 0, %p2;
         barrier.sync.aligned 3; barrier.cta.red.popc.aligned.u32 %o3, 4, 96, !%p0;";
    let out = run_threads(body, 96, &[], 4).unwrap();
    assert_eq!(out, [vec![70; 96], vec![0; 96], vec![1; 96], vec![26; 96]]);
}

#[test]
fn producers_and_consumers_at_named_barriers() {
    // Warp 0 fills, the others read; each side only arrives at the other's barrier.
    let body = ".shared .align 4 .b8 slot[128];
         mov.u32 %r0, slot; and.b32 %r1, %tid, 31; shl.b32 %r1, %r1, 2; add.u32 %r1, %r1, %r0; mov.u32 %r3, 0;
         setp.lt.u32 %p0, %tid, 32; mov.u32 %r2, 0;
         LOOP: @!%p0 bra CONSUME;
         bar.sync 2, 96; add.u32 %r4, %tid, %r2; st.shared.u32 [%r1], %r4; bar.arrive 1, 96; bra NEXT;
         CONSUME: bar.arrive 2, 96; bar.sync 1, 96; ld.shared.u32 %r4, [%r1]; add.u32 %r3, %r3, %r4;
         NEXT: add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 10; @%p1 bra LOOP;
         mov.u32 %o0, %r3;";
    let out = run_threads(body, 96, &[], 1).unwrap();
    let due = |thread: u32| if thread < 32 { 0 } else { 10 * (thread % 32) + 45 };
    assert_eq!(out[0], (0..96).map(due).collect::<Word>());
}

#[test]
fn exited_threads_do_not_hold_a_barrier() {
    // Threads 40 to 63 share a warp with some that wait.
    let body = "setp.ge.u32 %p0, %tid, 40; mov.u32 %o0, 5; st.global.u32 [%at1], %o0; @%p0 exit; bar.sync 0; mov.u32 %o0, 1;";
    let out = run_threads(body, 96, &[], 1).unwrap();
    assert_eq!(out[0], (0..96).map(|thread| if thread < 40 { 1 } else { 5 }).collect::<Word>());
}

#[test]
fn atomics() {
    let body = ".shared .align 8 .b8 cell[64];
         mov.u32 %r0, 0; mov.u64 %d0, 0; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [cell], %r0;
         @%p0 st.shared.u32 [cell+4], 100; @%p0 st.shared.f32 [cell+8], 0f00000000; @%p0 st.shared.u64 [cell+16], %d0;
         @%p0 st.shared.u32 [cell+24], 0; @%p0 st.shared.u32 [cell+28], 7;
         bar.sync 0;
         atom.shared.add.u32 %o0, [cell], 2; atom.shared.min.s32 %r1, [cell+4], %tid; mov.f32 %f0, 0f3F000000;
         atom.shared.add.f32 %f1, [cell+8], %f0; cvt.u64.u32 %d1, %tid; atom.shared.max.u64 %d2, [cell+16], %d1;
         atom.shared.inc.u32 %o5, [cell+24], 9; atom.shared.cas.b32 %r2, [cell+28], 7, %tid;
         bar.sync 0;
         ld.shared.u32 %o1, [cell]; ld.shared.u32 %o2, [cell+4]; ld.shared.u32 %o3, [cell+8]; ld.shared.u32 %o4, [cell+16];
         ld.shared.u32 %o6, [cell+28];";
    let out = run(body, &[], 7);
    assert_eq!(out[0], lanes(|lane| 2 * lane));
    assert_eq!([1, 2, 3, 4, 6].map(|index: usize| out[index][9]), [64, 0, 16.0_f32.to_bits(), 31, 0]);
    assert_eq!(out[5], lanes(|lane| lane % 10));
}

#[test]
fn generic_local_constant_and_parameter_addresses() {
    let body = ".shared .align 4 .b8 cell[128]; .local .align 4 .b8 stack[16];
         mov.u64 %d0, cell; cvta.shared.u64 %d0, %d0; mad.wide.u32 %d0, %tid, 4, %d0; st.u32 [%d0], %tid; ld.u32 %o0, [%d0];
         cvta.to.shared.u64 %d1, %d0; cvt.u32.u64 %r0, %d1; ld.shared.u32 %o1, [%r0];
         mov.u64 %d2, stack; cvta.local.u64 %d3, %d2; add.u32 %r1, %tid, 9; st.local.u32 [%d2+4], %r1; ld.u32 %o2, [%d3+4];
         setp.lt.u32 %p0, %tid, 16; selp.b64 %d4, %d0, %d3, %p0; st.u32 [%d4], 3; ld.u32 %o3, [%d4];
         st.local.v2.u16 [stack+8], {%h0, %h0}; ld.param.u8 %r2, [out+4]; mov.b64 %d5, out; ld.param.u8 %r3, [%d5+4]; sub.u32 %o4, %r2, %r3;";
    let out = run(body, &[], 5);
    assert_eq!(out[0], lanes(|lane| lane));
    assert_eq!(out[1], out[0]);
    assert_eq!(out[2], lanes(|lane| lane + 9));
    assert_eq!(out[3], [3; 32]);
    assert_eq!(out[4], [0; 32]);
}

#[test]
fn module_constants() {
    let text = text("and.b32 %r0, %tid, 3; mul.wide.u32 %d0, %r0, 4; mov.u64 %d1, table; add.u64 %d1, %d1, %d0; ld.const.u32 %o0, [%d1]; ld.global.nc.u32 %o1, [other+4];", 0, 2, 32)
        .replace(".visible .entry", ".const .align 4 .u32 table[4] = {10, 0x14, 30, -1};\n.visible .global .align 4 .b8 other[8] = {0, 0, 0, 0, 1, 2};\n.visible .entry");
    let (out, _) = launch(&text, &[], 2, Setup::default()).unwrap();
    assert_eq!(out[0], lanes(|lane| [10, 20, 30, u32::MAX][lane as usize % 4]));
    assert_eq!(out[1], [0x0201; 32]);
}

#[test]
fn narrow_and_vector_accesses() {
    let body = ".shared .align 16 .b8 cell[1024];
         mov.u32 %r0, cell; mad.lo.u32 %r0, %tid, 16, %r0; mov.u32 %r1, 0xfffefdfc; mov.u64 %d0, 0x1122334455667788;
         st.shared.v2.u32 [%r0], {%r1, %tid}; st.shared.b64 [%r0+8], %d0;
         ld.shared.s8 %o0, [%r0+1]; ld.shared.u8 %o1, [%r0+1]; ld.shared.s16 %o2, [%r0+2]; ld.shared.v4.u16 {%h0, %h1, %h2, %h3}, [%r0+8];
         mov.b32 %o3, {%h3, %h0}; ld.shared.s8 %h4, [%r0]; cvt.u32.u16 %o4, %h4; ld.shared.v2.b64 {%d1, %d2}, [%r0];
         shr.u64 %d1, %d1, 32; cvt.u32.u64 %o5, %d1; ld.shared.s32 %d3, [%r0]; mov.b64 {_, %o6}, %d3;";
    let out = run(body, &[], 7);
    let due = [0xffff_fffd, 0xfd, 0xffff_fffe, 0x7788_1122, 0xfffc, 21, 0xffff_ffff];
    assert_eq!(out.iter().map(|word| word[21]).collect::<Vec<_>>(), due);
}

#[test]
fn asynchronous_copies() {
    let body = ".shared .align 16 .b8 cell[512];
         mov.u32 %r0, cell; shl.b32 %r1, %tid, 2; add.u32 %r0, %r0, %r1; setp.gt.u32 %p0, %tid, 7; selp.u32 %r2, 0, 4, %p0;
         cp.async.ca.shared.global [%r0], [%at0], 4, %r2; cp.async.commit_group;
         cp.async.ca.shared.global.L2::128B [%r0+128], [%at0], 4; cp.async.commit_group;
         cp.async.wait_group 1; ld.shared.u32 %o0, [%r0]; cp.async.wait_all; ld.shared.u32 %o1, [%r0+128];
         setp.eq.u32 %p1, %tid, 3; cp.async.ca.shared.global [%r0+256], [%at0], 4, %p1; cp.async.wait_all; ld.shared.u32 %o2, [%r0+256];";
    let out = run(body, &[lanes(|lane| lane + 1)], 3);
    assert_eq!(out[0], lanes(|lane| if lane > 7 { 0 } else { lane + 1 }));
    assert_eq!(out[1], lanes(|lane| lane + 1));
    assert_eq!(out[2], lanes(|lane| if lane == 3 { 0 } else { lane + 1 }));
}

/// Each block waits for the flag of the next one, the last one waits for none.
fn chain(seed: u64, blocks: u32) -> Result<Vec<u32>, String> {
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 flags)\n{\n
         .reg .pred %p<4>; .reg .b32 %r<10>; .reg .b64 %d<6>;
         ld.param.u64 %d0, [flags]; mov.u32 %r0, %ctaid.x; mov.u32 %r1, %nctaid.x; mul.wide.u32 %d1, %r0, 4; add.u64 %d1, %d1, %d0;
         add.u32 %r2, %r0, 1; mov.u32 %r4, 0; setp.eq.u32 %p0, %r2, %r1; @%p0 bra SET;
         WAIT: ld.acquire.gpu.global.u32 %r4, [%d1+4]; setp.eq.u32 %p1, %r4, 0; @%p1 bra WAIT;
         SET: add.u32 %r4, %r4, 1; mov.u32 %r5, %tid.x; setp.ne.u32 %p2, %r5, 0; @%p2 exit; st.release.gpu.global.u32 [%d1], %r4; ret;\n}\n";
    let module = ptx::parse(text).unwrap();
    let mut device = Device::default();
    let flags = device.alloc(u64::from(blocks) * 4);
    device.fill(flags, &[0], blocks as usize * 4).unwrap();
    let setup = Setup {
        grid: [blocks, 1, 1],
        params: flags.to_le_bytes().to_vec(),
        seed,
        max_instructions: 1 << 22,
        ..Setup::default()
    };
    exec::run(&module, "k", &setup, &mut device).map_err(|fault| fault.to_string())?;
    let mut bytes = vec![0; blocks as usize * 4];
    device.read(flags, &mut bytes).unwrap();
    Ok(bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect())
}

#[test]
fn blocks_that_wait_for_each_other_go_on() {
    for seed in 0..6 {
        assert_eq!(chain(seed, 12).unwrap(), (0..12).rev().map(|left| left + 1).collect::<Vec<u32>>());
    }
}

#[test]
fn lanes_that_wait_for_another_lane_go_on() {
    // Lane 31 stands behind the loop in which the others wait for it.
    let body = ".shared .align 4 .b8 flag[4];
         setp.eq.u32 %p0, %tid, 31; @%p0 st.shared.u32 [flag], 0; bar.warp.sync -1; mov.u32 %r0, 0; @%p0 bra SET;
         WAIT: atom.shared.or.b32 %r0, [flag], 0; setp.eq.u32 %p1, %r0, 0; @%p1 bra WAIT; bra END;
         SET: atom.shared.exch.b32 %r1, [flag], 5; mov.u32 %r0, 5;
         END: mov.u32 %o0, %r0;";
    assert_eq!(run(body, &[], 1)[0], [5; 32]);
}

#[test]
fn a_seed_names_one_execution() {
    let order = |seed: u64| {
        let body = ".reg .b64 %base; ld.param.u64 %base, [in]; atom.global.add.u32 %o0, [%base], 1;";
        let text = text(body, 0, 1, 128);
        let module = ptx::parse(&text).unwrap();
        let mut device = Device::default();
        let (input, output) = (device.alloc(4), device.alloc(512));
        device.fill(input, &[0], 4).unwrap();
        let params = [input, output].iter().flat_map(|address| address.to_le_bytes()).collect();
        let setup = Setup { block: [128, 1, 1], params, seed, ..Setup::default() };
        exec::run(&module, "k", &setup, &mut device).unwrap();
        let mut bytes = vec![0; 512];
        device.read(output, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(order(1), order(1));
    assert!((2..20).any(|seed| order(seed) != order(1)));
}

#[test]
fn counts_of_a_launch() {
    let body = "setp.lt.u32 %p0, %tid, 8; @%p0 bra HALF; add.u32 %o0, %tid, 1; bra END; HALF: add.u32 %o0, %tid, 2; END:";
    let text = text(body, 0, 1, 32);
    let (_, counters) = launch(&text, &[], 1, Setup { grid: [1; 3], ..Setup::default() }).unwrap();
    assert_eq!(counters.instructions["add.u32"], 2);
    assert_eq!(counters.instructions["bra"], 2);
    assert_eq!(counters.instructions["st.global.u32"], 1);
}

#[test]
fn an_arrival_is_no_wait() {
    // Warp 0 arrives, then writes what warp 1 reads behind the barrier; in some orders the write comes first.
    let body = ".shared .align 4 .b8 slot[8];
         and.b32 %r1, %tid, 31; setp.ne.u32 %p1, %r1, 0; setp.lt.u32 %p0, %tid, 32; @%p0 bra PRODUCE;
         bar.sync 1, 64; @%p1 bra END; ld.shared.u32 %o0, [slot]; bra END;
         PRODUCE: @!%p1 st.shared.u32 [slot], 1; bar.arrive 1, 64; @!%p1 st.shared.u32 [slot], 2;
         END:";
    let text = text(body, 0, 1, 64);
    for seed in 0..8 {
        let found = launch(&text, &[], 1, Setup { block: [64, 1, 1], seed, ..Setup::default() });
        assert_eq!(found.unwrap_err().kind, ptx_machine::fault::Kind::SharedRace, "seed {seed}");
    }
}
