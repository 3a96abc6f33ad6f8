//! Places of registers in a warp's register file.
//!
//! nvcc names a new register for each value, thousands in an unrolled kernel. Those that live within one straight piece of
//! code share places, so that a warp's file stays in the cache. Only registers whose first mention is an unguarded
//! destination qualify: each lane that reads one has written it in the same pass.

use super::op::{NONE, R};
use super::parse::{Arg, Body, Class, Stmt};

/// Where registers stand.
#[derive(Debug, Default)]
pub struct Places {
    /// By register.
    pub place: Vec<R>,
    /// 32-bit places, 64-bit places, predicates; more than fit in [`R`] are an error of the decoder.
    pub sizes: [usize; 3],
}

#[derive(Clone, Copy)]
struct Use {
    block: u32,
    last: u32,
    local: bool,
    seen: bool,
}

/// Calls `visit` with each register of an operand.
fn registers(arg: &Arg<'_>, visit: &mut dyn FnMut(u32)) {
    match arg {
        Arg::Reg(register) | Arg::Not(register) => visit(*register),
        Arg::Vector(parts) => parts.iter().for_each(|part| registers(part, visit)),
        Arg::Addr(base, _) => registers(base, visit),
        Arg::Pair(pair) => {
            registers(&pair.0, visit);
            registers(&pair.1, visit);
        }
        _ => {}
    }
}

/// Is the first operand a destination and nothing else?
fn writes(stmt: &Stmt<'_>) -> bool {
    let name = stmt.opcode.split('.').next().unwrap_or_default();
    stmt.guard.is_none()
        && !matches!(
            name,
            "st" | "red" | "bar" | "barrier" | "bra" | "brx" | "call" | "cp" | "prefetch" | "nanosleep"
        )
}

fn uses(body: &Body<'_>) -> Vec<Use> {
    let mut uses = vec![Use { block: 0, last: 0, local: false, seen: false }; body.classes.len()];
    let mut begins = vec![false; body.stmts.len() + 1];
    for &at in body.labels.values() {
        begins[at as usize] = true;
    }
    let mut block = 0;
    for (index, stmt) in body.stmts.iter().enumerate() {
        block += u32::from(begins[index]);
        let mut touch = |register: u32, writes: bool| {
            let found = &mut uses[register as usize];
            if found.seen {
                found.local &= found.block == block;
            } else {
                *found = Use { block, last: 0, local: writes, seen: true };
            }
            found.last = index as u32;
        };
        if let Some((_, register)) = stmt.guard {
            touch(register, false);
        }
        if let Ok(args) = &stmt.args {
            let sources = usize::from(writes(stmt)).min(args.len());
            args[sources..].iter().for_each(|arg| registers(arg, &mut |register| touch(register, false)));
            // An address or a pair in front is no plain destination, but a register in it counts all the same.
            let plain = matches!(args.first(), Some(Arg::Reg(_) | Arg::Vector(_) | Arg::Pair(_)));
            args[..sources].iter().for_each(|arg| registers(arg, &mut |register| touch(register, plain)));
        }
        block += u32::from(matches!(stmt.opcode.split('.').next(), Some("bra" | "brx")));
    }
    uses
}

/// Gives all registers of a body a place.
pub fn places(body: &Body<'_>) -> Places {
    let uses = uses(body);
    let kind = |register: u32| match body.classes[register as usize] {
        Class::Word(_) => 0,
        Class::Long => 1,
        Class::Pred => 2,
    };
    let mut out = Places { place: vec![NONE; body.classes.len()], sizes: [0; 3] };
    let mut free: [Vec<R>; 3] = Default::default();
    for (index, stmt) in body.stmts.iter().enumerate() {
        let mut mentioned: Vec<u32> = stmt.guard.iter().map(|&(_, register)| register).collect();
        if let Ok(args) = &stmt.args {
            args.iter().for_each(|arg| registers(arg, &mut |register| mentioned.push(register)));
        }
        for &register in &mentioned {
            let kind = kind(register);
            if out.place[register as usize] == NONE {
                let reused = if uses[register as usize].local { free[kind].pop() } else { None };
                out.sizes[kind] += usize::from(reused.is_none());
                out.place[register as usize] =
                    reused.unwrap_or(R::try_from(out.sizes[kind] - 1).unwrap_or(NONE));
            }
        }
        // Freed behind the statement, so that no destination stands on a source of its own statement.
        mentioned.sort_unstable();
        mentioned.dedup();
        for register in mentioned {
            let found = uses[register as usize];
            if found.local && found.last == index as u32 {
                free[kind(register)].push(out.place[register as usize]);
            }
        }
    }
    out
}
