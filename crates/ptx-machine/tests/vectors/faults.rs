//! What the executor must refuse, with the line and the thread to blame.

use crate::harness::{assert_fault, fault, launch, run_threads, text};
use ptx_machine::exec::{self, Setup};
use ptx_machine::fault::Kind;
use ptx_machine::memory::Device;
use ptx_machine::ptx;

#[test]
fn a_barrier_in_a_part_of_a_warp() {
    // The others go to another barrier.
    let body = "setp.lt.u32 %p0, %tid, 40;\n@%p0 bra SMALL;\nbar.sync 1;\nbra END;\nSMALL: bar.sync 2;\nEND:";
    let (found, text) = fault(body, 64);
    assert_eq!(found.kind, Kind::DivergentBarrier, "{found}");
    assert!(text.lines().nth(found.line as usize - 1).unwrap().contains("bar.sync"), "{found}");
    // The others wait for them in a shuffle.
    let body = "setp.eq.u32 %p0, %tid, 5;\n@%p0 bar.sync 0;\nshfl.sync.idx.b32 %o0, %tid, 0, 31, -1;";
    let found = assert_fault(body, 32, Kind::DivergentBarrier, "@%p0 bar.sync 0");
    assert_eq!(found.thread, [5, 0, 0]);
}

#[test]
fn barriers_that_do_not_match() {
    let body = "setp.lt.u32 %p0, %tid, 32;\n@%p0 bra FIRST;\nbar.sync 1, 64;\nbra END;\nFIRST: bar.sync 1, 96;\nEND:";
    assert_eq!(fault(body, 96).0.kind, Kind::DivergentBarrier);
    assert_fault("mov.u32 %r0, 17;\nbar.sync %r0;", 32, Kind::DivergentBarrier, "bar.sync %r0");
    assert_fault("bar.sync 1, 40;", 64, Kind::DivergentBarrier, "bar.sync 1, 40");
}

#[test]
fn deadlock() {
    // A barrier for more threads than there are.
    let found = assert_fault("bar.sync 3, 128;", 96, Kind::Deadlock, "bar.sync 3, 128");
    assert!(found.detail.contains("barrier 3 has 96 of 128"), "{found}");
    // Two warps at two barriers.
    let body = "setp.lt.u32 %p0, %tid, 32;\n@%p0 bra FIRST;\nbar.sync 1;\nbra END;\nFIRST: bar.sync 2;\nEND:";
    assert_eq!(fault(body, 64).0.kind, Kind::Deadlock);
}

#[test]
fn lanes_that_are_not_there() {
    // Lanes 16 and up have exited: to name them is no fault, to read from them is one.
    let body = "setp.gt.u32 %p0, %tid, 15;\n@%p0 exit;\nshfl.sync.bfly.b32 %o0, %tid, 16, 31, -1;";
    let found = assert_fault(body, 32, Kind::InactiveLane, "shfl.sync.bfly");
    assert!(found.detail.contains("reads lane 16"), "{found}");
    // The second warp has eight lanes only.
    let found = assert_fault("shfl.sync.down.b32 %o0, %tid, 4, 31, -1;", 40, Kind::InactiveLane, "shfl.sync");
    assert_eq!(found.thread, [36, 0, 0]);
    // A lane that is not in its own mask.
    let found = assert_fault("bar.warp.sync 0xfffffffe;", 32, Kind::InactiveLane, "bar.warp.sync");
    assert_eq!(found.thread, [0, 0, 0]);
    // A source outside of the mask.
    let body =
        "setp.gt.u32 %p0, %tid, 15;\n@%p0 bra END;\nshfl.sync.down.b32 %o0, %tid, 8, 31, 0xffff;\nEND:";
    let found = assert_fault(body, 32, Kind::InactiveLane, "shfl.sync.down");
    assert_eq!(found.thread, [8, 0, 0]);
    // A named lane that waits elsewhere.
    let body = "setp.gt.u32 %p0, %tid, 15;\n@%p0 bra FAR;\nredux.sync.add.u32 %o0, %tid, -1;\nbra END;\n\
                FAR: match.any.sync.b32 %o0, %tid, -1;\nEND:";
    assert_eq!(fault(body, 32).0.kind, Kind::InactiveLane);
    // A matrix operation with lanes missing.
    let body = "setp.gt.u32 %p0, %tid, 30;\n@%p0 exit;\nmovmatrix.sync.aligned.m8n8.trans.b16 %o0, %tid;";
    assert_fault(body, 32, Kind::InactiveLane, "movmatrix");
}

#[test]
fn too_long() {
    let found =
        assert_fault("LOOP:\nadd.u32 %r0, %r0, 1; bra LOOP;", 32, Kind::TooLong, "add.u32 %r0, %r0, 1");
    assert!(found.detail.contains("65536"), "{found}");
}

#[test]
fn unknown_instructions_only_where_they_are_executed() {
    for unknown in [
        "wgmma.fence.sync.aligned;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r0,%r1,%r2,%r3}, {%r4,%r5,%r6,%r7}, {%r8,%r9}, {%r0,%r1,%r2,%r3};",
        "cp.async.bulk.wait_group 0;",
        "add.s32.nonsense %r0, %r1, %r2;",
        "cvt.rn.satfinite.e4m3x2.f32 %h0, %f0, %f1;",
        "call (%r0), somewhere, (%r1);",
        "vadd.u32.u32.u32 %r0, %r1, %r2;",
        "add.s64 %d0, %r1, %d2;",
    ] {
        let found = assert_fault(unknown, 32, Kind::UnknownInstruction, unknown);
        assert_eq!(found.thread, [0, 0, 0]);
        let body = format!("setp.lt.u32 %p0, %tid, 64; @%p0 bra END; {unknown} END: mov.u32 %o0, 4;");
        assert_eq!(run_threads(&body, 32, &[], 1).unwrap()[0], [4; 32]);
    }
    let body = "setp.eq.u32 %p0, %tid, 35;\n@%p0 trap;";
    assert_eq!(assert_fault(body, 64, Kind::UnknownInstruction, "@%p0 trap").thread, [35, 0, 0]);
}

#[test]
fn faults_of_memory_name_their_thread() {
    let body = "mul.wide.u32 %d0, %tid, 4; add.u64 %d0, %d0, %at1;\nld.global.u32 %r0, [%d0+4096];";
    let found = assert_fault(body, 64, Kind::OutOfBounds, "ld.global.u32 %r0");
    assert!(found.address.is_some(), "{found}");
    assert_fault("st.global.u32 [%at1+1], %tid;", 32, Kind::Misaligned, "st.global.u32 [%at1+1]");
    let body = ".shared .align 4 .b8 cell[64];\nshl.b32 %r0, %tid, 2;\nld.shared.u32 %r1, [%r0];";
    assert_fault(body, 32, Kind::Uninitialised, "ld.shared.u32 %r1");
    // An address of another space than the instruction names.
    let cell =
        ".shared .align 4 .b8 cell[64];\nmov.u64 %d0, cell; cvta.shared.u64 %d0, %d0; st.u32 [%d0], 1;\n";
    for access in ["ld.global.u32 %r1, [%d0]", "st.global.u32 [%d0], 2", "ld.local.u32 %r1, [%d0]"] {
        assert_fault(&format!("{cell}{access};"), 1, Kind::OutOfBounds, access);
    }
    assert_fault("ld.const.u32 %r1, [%at1];", 1, Kind::OutOfBounds, "ld.const.u32");
    // The read-only path, behind a store of the same launch.
    let body = "st.global.u32 [%at1], %tid;\nld.global.nc.u32 %r1, [%at1];";
    assert_fault(body, 32, Kind::GlobalRace, "ld.global.nc.u32");
    let body = ".local .align 4 .b8 stack[16];\nmov.u64 %d0, stack; st.local.u32 [%d0+16], %tid;";
    assert_fault(body, 32, Kind::OutOfBounds, "st.local.u32");
}

#[test]
fn launches_that_no_device_takes() {
    let text = text("", 0, 1, 32).replace("\n{\n", "\n.maxntid 64, 1, 1\n{\n");
    let module = ptx::parse(&text).unwrap();
    let kernel = module.kernel("k").unwrap();
    assert_eq!((kernel.max_threads, kernel.param_bytes, kernel.params[1].offset), (Some(64), 16, 8));
    let good = Setup { params: vec![0; 16], ..Setup::default() };
    let bad = [
        Setup { block: [65, 1, 1], ..good.clone() },
        Setup { block: [0, 1, 1], ..good.clone() },
        Setup { grid: [1, 70_000, 1], ..good.clone() },
        Setup { dynamic_shared: 300 << 10, ..good.clone() },
        Setup { params: vec![0; 12], ..good.clone() },
    ];
    for setup in bad {
        let found = exec::run(&module, "k", &setup, &mut Device::default()).unwrap_err();
        assert_eq!(found.kind, Kind::BadLaunch, "{found}");
    }
    let found = exec::run(&module, "other", &good, &mut Device::default()).unwrap_err();
    assert_eq!(found.kind, Kind::BadLaunch);
    assert!(launch(&text, &[], 1, Setup::default()).is_ok());
}

#[test]
fn text_that_is_no_ptx() {
    let head = ".version 7.0\n.target sm_80\n.address_size 64\n";
    for (text, line) in [
        ("nonsense".to_owned(), 1),
        (format!("{head}.visible .entry k(.param .u64 a)\n{{\n add.s32 %r0, %r1"), 6),
        (format!("{head}.visible .entry k()\n{{\n @%p0 ret;\n}}"), 6),
        (format!("{head}.visible .entry k()\n{{\nA: ret;\nA: ret;\n}}"), 7),
        (format!("{head}.visible .entry k()\n{{\n .reg .b77 %r<4>;\n}}"), 6),
        (format!("{head}/* never closed"), 4),
    ] {
        let error = ptx::parse(&text).unwrap_err();
        assert_eq!(error.line, line, "{error}");
    }
}

#[test]
fn kernels_and_what_they_declare() {
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 dynamic[];\n\
         .visible .entry first(.param .align 8 .b8 p[20], .param .u32 q)\n.reqntid 32, 2, 1\n.minnctapersm 3\n{\n\
         .shared .align 4 .b8 a[6]; .shared .align 8 .b8 b[8]; .reg .b32 %r<3>; mov.u32 %r0, dynamic; ret;\n}\n\
         .weak .entry second\n{\n ret;\n}\n.visible .func (.param .b32 r) f(.param .b32 x)\n{\n ret;\n}\n";
    let module = ptx::parse(text).unwrap();
    assert_eq!(module.kernel_names().collect::<Vec<_>>(), ["first", "second"]);
    let first = module.kernel("first").unwrap();
    assert_eq!((first.params[0].size, first.params[1].offset, first.param_bytes), (20, 20, 24));
    assert_eq!((first.static_shared_bytes, first.uses_dynamic_shared), (16, true));
    assert_eq!((first.required_threads, first.min_blocks), (Some([32, 2, 1]), Some(3)));
    let second = module.kernel("second").unwrap();
    assert_eq!((second.params.len(), second.uses_dynamic_shared), (0, false));
    assert_eq!((module.version.as_str(), module.target.as_str()), ("7.0", "sm_80"));
}
