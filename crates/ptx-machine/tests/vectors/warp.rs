//! Shuffles, votes, matches, reductions, and lanes that part and meet.

use crate::harness::{Word, lanes, run, run_threads, spread};

/// The manual's pseudo-code of `shfl`: the source lane and the predicate.
fn source(mode: &str, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let (bval, cval, segment) = (b & 31, c & 31, c >> 8 & 31);
    let max_lane = (lane & segment) | (cval & !segment);
    let min_lane = lane & segment;
    let (lane, max_lane) = (lane as i32, max_lane as i32);
    let (j, p) = match mode {
        "up" => (lane - bval as i32, lane - bval as i32 >= max_lane),
        "down" => (lane + bval as i32, lane + bval as i32 <= max_lane),
        "bfly" => (lane ^ bval as i32, lane ^ bval as i32 <= max_lane),
        _ => {
            let j = (min_lane | (bval & !segment)) as i32;
            (j, j <= max_lane)
        }
    };
    if p { (j as u32, true) } else { (lane as u32, false) }
}

#[test]
fn shuffles() {
    let value = spread(3);
    for mode in ["up", "down", "bfly", "idx"] {
        let clamp = if mode == "up" { 0 } else { 31 };
        for width in [32, 16, 8, 4, 2] {
            let c = (32 - width) << 8 | clamp;
            for b in 0..33 {
                let body =
                    format!("shfl.sync.{mode}.b32 %o0|%p0, %i0, {b}, {c}, -1; selp.u32 %o1, 1, 0, %p0;");
                let out = run(&body, std::slice::from_ref(&value), 2);
                for lane in 0..32 {
                    let (from, inside) = source(mode, lane, b, c);
                    let lane = lane as usize;
                    assert_eq!(out[0][lane], value[from as usize], "{mode} {b} {c:#x} lane {lane}");
                    assert_eq!(out[1][lane], u32::from(inside), "{mode} {b} {c:#x} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn shuffles_by_lane() {
    let (value, by) = (spread(4), lanes(|lane| lane * 7 + 3));
    let out = run("shfl.sync.idx.b32 %o0, %i0, %i1, 31, 0xffffffff;", &[value.clone(), by.clone()], 1);
    assert!((0..32).all(|lane| out[0][lane] == value[by[lane] as usize % 32]));
}

#[test]
fn votes() {
    for bits in [0, 1, 0xffff_ffff, 0x8000_0001, 0x00ff_ff00] {
        let input = lanes(|lane| bits >> lane & 1);
        let body =
            "setp.ne.u32 %p0, %i0, 0; vote.sync.ballot.b32 %o0, %p0, -1; vote.sync.any.pred %p1, %p0, -1;
             vote.sync.all.pred %p2, %p0, -1; vote.sync.uni.pred %p3, !%p0, -1;
             selp.u32 %o1, 1, 0, %p1; selp.u32 %o2, 1, 0, %p2; selp.u32 %o3, 1, 0, %p3;";
        let out = run(body, &[input], 4);
        let uniform = bits == 0 || bits == u32::MAX;
        let due = [bits, u32::from(bits != 0), u32::from(bits == u32::MAX), u32::from(uniform)];
        for (out, due) in out.iter().zip(due) {
            assert_eq!(out, &vec![due; 32], "{bits:#x}");
        }
    }
}

#[test]
fn matches_and_reductions() {
    let value = lanes(|lane| lane * lane % 5);
    let body = "match.any.sync.b32 %o0, %i0, -1; cvt.u64.u32 %d0, %i0; shl.b64 %d0, %d0, 40;
         match.any.sync.b64 %o1, %d0, -1; match.all.sync.b32 %o2|%p0, %i0, -1; selp.u32 %o3, 1, 0, %p0;
         mov.u32 %r0, 9; match.all.sync.b32 %o4|%p0, %r0, -1;";
    let out = run(body, std::slice::from_ref(&value), 5);
    for lane in 0..32 {
        let same =
            (0..32).filter(|&other| value[other] == value[lane]).map(|other| 1_u32 << other).sum::<u32>();
        let due = [same, same, 0, 0, u32::MAX];
        assert_eq!(out.iter().map(|word| word[lane]).collect::<Vec<_>>(), due);
    }
    let value = spread(9);
    let body =
        "redux.sync.add.s32 %o0, %i0, -1; redux.sync.min.s32 %o1, %i0, -1; redux.sync.max.u32 %o2, %i0, -1;
         redux.sync.xor.b32 %o3, %i0, -1; elect.sync %o4|%p0, -1; selp.u32 %o5, 1, 0, %p0;";
    let out = run(body, std::slice::from_ref(&value), 6);
    assert_eq!(out[0][5], value.iter().fold(0, |sum: u32, x| sum.wrapping_add(*x)));
    assert_eq!(out[1][6] as i32, value.iter().map(|&x| x as i32).min().unwrap());
    assert_eq!(out[2][7], *value.iter().max().unwrap());
    assert_eq!(out[3][8], value.iter().fold(0, |all, x| all ^ x));
    assert_eq!((out[4][31], out[5][0], out[5][1]), (0, 1, 0));
}

#[test]
fn parts_of_a_warp_shuffle_alone() {
    // The two halves come to one instruction at different times, each naming itself.
    let body = "setp.lt.u32 %p0, %tid, 16; mov.u32 %r1, 0xffff; @%p0 bra SMALL; mov.u32 %r1, 0xffff0000;
         add.u32 %i0, %i0, 100;
         SMALL: shfl.sync.bfly.b32 %o0, %i0, 1, 31, %r1;";
    let out = run(body, &[lanes(|lane| lane)], 1);
    assert_eq!(out[0], lanes(|lane| (lane ^ 1) + if lane < 16 { 0 } else { 100 }));
}

#[test]
fn lanes_meet_before_a_full_shuffle() {
    // The body of the branch stands behind: those who skip it come to the shuffle first and wait.
    let body = "setp.eq.u32 %p0, %tid, 5; mov.u32 %r1, %tid; @%p0 bra FAR;
         BACK: shfl.sync.idx.b32 %o0, %r1, 5, 31, -1; activemask.b32 %o1; bra.uni END;
         FAR: mov.u32 %r1, 77; bra BACK;
         END:";
    let out = run(body, &[], 2);
    assert_eq!(out[0], [77; 32]);
    assert_eq!(out[1], [u32::MAX; 32]);
}

#[test]
fn loops_of_different_lengths() {
    // Collatz steps, and the lanes that are left at each of them.
    let body = "add.u32 %r0, %tid, 1; mov.u32 %o0, 0;
         LOOP: setp.eq.u32 %p0, %r0, 1; @%p0 bra DONE;
         and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; @%p1 bra EVEN;
         mad.lo.u32 %r0, %r0, 3, 1; bra NEXT;
         EVEN: shr.u32 %r0, %r0, 1;
         NEXT: add.u32 %o0, %o0, 1; bra LOOP;
         DONE: bar.warp.sync -1; activemask.b32 %o1;";
    let steps = |lane: u32| {
        let (mut n, mut steps) = (lane + 1, 0);
        while n != 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let out = run(body, &[], 2);
    assert_eq!(out[0], lanes(steps));
    assert_eq!(out[1], [u32::MAX; 32]);
}

#[test]
fn branches_by_index() {
    let body = "and.b32 %r0, %tid, 3;
         LIST: .branchtargets A, B, C, D;
         brx.idx %r0, LIST;
         A: mov.u32 %o0, 10; bra END;
         B: mov.u32 %o0, 20; bra END;
         C: mov.u32 %o0, 30; bra END;
         D: mov.u32 %o0, 40;
         END:";
    assert_eq!(run(body, &[], 1)[0], lanes(|lane| 10 * (lane % 4 + 1)));
}

#[test]
fn scopes_have_their_own_registers_and_labels() {
    let body = "mov.u32 %r0, 1;
         { .reg .u32 %r0; .reg .pred p; mov.u32 %r0, 50; setp.lt.u32 p, %tid, 8; @p bra SKIP; add.u32 %r0, %r0, 1;
           SKIP: mov.u32 %o0, %r0; }
         { .reg .pred p; setp.lt.u32 p, %tid, 4; @p bra SKIP; add.u32 %o0, %o0, 100; SKIP: }
         add.u32 %o0, %o0, %r0;";
    assert_eq!(
        run(body, &[], 1)[0],
        lanes(|lane| 51 + u32::from(lane >= 8) + if lane < 4 { 0 } else { 100 })
    );
}

#[test]
fn special_registers() {
    let body = "mov.u32 %o0, %laneid; mov.u32 %o1, %warpid; mov.u32 %o2, %ntid.x; mov.u32 %o3, %lanemask_lt;
         mov.u32 %o4, %lanemask_ge; mov.u32 %o5, %nctaid.x; add.u32 %o6, %ctaid.y, %tid.y; mov.u64 %d0, %clock64;";
    let out: Vec<Word> = run_threads(body, 48, &[], 7).unwrap();
    for thread in 0..48 {
        let lane = thread % 32;
        let due = [lane, thread / 32, 48, (1 << lane) - 1, u32::MAX << lane, 1, 0];
        assert_eq!(out.iter().map(|word| word[thread as usize]).collect::<Vec<_>>(), due);
    }
}

#[test]
fn masks_may_name_lanes_that_are_gone() {
    // Eight lanes in the second warp; in the first, lane 3 goes while the others wait for it.
    let body = "setp.eq.u32 %p0, %tid, 3; mov.u32 %o0, 9; mov.u32 %o1, 9; st.global.u32 [%at1], %o0;
         st.global.u32 [%at1+160], %o0; @%p0 bra GONE;
         setp.ne.u32 %p1, %tid, 34; vote.sync.ballot.b32 %o0, %p1, -1; redux.sync.add.u32 %o1, 1, -1; bar.warp.sync -1; bra END;
         GONE: exit;
         END:";
    let out = run_threads(body, 40, &[], 2).unwrap();
    for (thread, (&votes, &sum)) in out[0].iter().zip(&out[1]).enumerate() {
        let due = match thread {
            3 => (9, 9),
            32.. => (0xfb, 8),
            _ => (!8, 31),
        };
        assert_eq!((votes, sum), due, "{thread}");
    }
}
