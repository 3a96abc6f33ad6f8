//! Statements to instructions.

use super::allocate::Places;
use super::op::{Ins, NONE, Op, Ty};
use super::operands::{Decoded, Decoder, Parts};
use super::parse::{Arg, Body, Class, Globals, Stmt};
use super::{Kernel, ParseError, decode_alu, decode_convert, decode_memory, decode_warp};
use crate::exec::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};

/// Decodes a kernel's body.
pub fn kernel(
    body: &Body<'_>,
    places: Places,
    globals: &Globals<'_>,
    kernel: &mut Kernel,
) -> Result<(), ParseError> {
    let mut decoder = Decoder::new(body, places);
    place_variables(&mut decoder, globals, kernel);
    for stmt in &body.stmts {
        let (guard, unless) = match stmt.guard {
            Some((unless, register)) if body.classes[register as usize] == Class::Pred => {
                (decoder.place[register as usize], unless)
            }
            Some(_) => return Err(ParseError::new(stmt.line, "a guard that is no predicate")),
            None => (NONE, false),
        };
        let op = statement(&mut decoder, stmt).unwrap_or_else(|why| {
            kernel.unknown.push((stmt.line, why.clone()));
            Op::Unknown(why.into())
        });
        kernel.names.push(counted_name(stmt.opcode, &op));
        kernel.code.push(Ins { op, guard, unless, line: stmt.line });
    }
    kernel.names.push("exit".into());
    kernel.code.push(Ins { op: Op::Exit, guard: NONE, unless: false, line: body.end_line });
    kernel.file = decoder.file;
    Ok(())
}

/// Gives shared variables that the kernel mentions their offsets, dynamic ones behind the static ones.
fn place_variables<'a>(decoder: &mut Decoder<'_, 'a>, globals: &Globals<'a>, kernel: &mut Kernel) {
    let mut mentioned = std::collections::HashSet::new();
    for stmt in &decoder.body.stmts {
        for arg in stmt.args.iter().flatten() {
            match arg {
                Arg::Symbol(name) => mentioned.insert(*name),
                Arg::Addr(base, _) => matches!(**base, Arg::Symbol(name) if mentioned.insert(name)),
                _ => false,
            };
        }
    }
    let outer = globals.shared.iter().filter(|(name, _)| mentioned.contains(name));
    let all: Vec<_> = outer.chain(&decoder.body.shared).collect();
    let mut bytes = 0_u32;
    for (name, variable) in all.iter().filter(|(_, variable)| !variable.dynamic) {
        bytes = bytes.next_multiple_of(variable.align);
        decoder.shared.insert(name, bytes);
        bytes += variable.bytes;
    }
    kernel.static_shared_bytes = bytes;
    let dynamic = || all.iter().filter(|(_, variable)| variable.dynamic);
    let align = dynamic().map(|(_, variable)| variable.align).max().unwrap_or(16).max(16);
    kernel.dynamic_shared_at = bytes.next_multiple_of(align);
    for (name, _) in dynamic() {
        decoder.shared.insert(name, kernel.dynamic_shared_at);
        kernel.uses_dynamic_shared = true;
    }
    let mut local = 0_u32;
    for (name, variable) in &decoder.body.local {
        local = local.next_multiple_of(variable.align.max(16));
        decoder.symbols.insert(name, LOCAL_WINDOW + u64::from(local));
        local += variable.bytes;
    }
    kernel.local_bytes = local.next_multiple_of(16);
    for (name, &at) in &globals.constants {
        decoder.symbols.insert(name, CONSTANT_WINDOW + at);
    }
    for stmt in decoder.body.stmts.iter().flat_map(|stmt| stmt.args.iter().flatten()) {
        let name = match stmt {
            Arg::Symbol(name) => name,
            Arg::Addr(base, _) => match &**base {
                Arg::Symbol(name) => name,
                _ => continue,
            },
            _ => continue,
        };
        if let Some(param) = kernel.params.iter().find(|param| param.name == *name) {
            decoder.symbols.insert(name, PARAM_WINDOW + u64::from(param.offset));
        }
    }
}

/// The name that counters know an instruction by: the opcode, matrix operations by shape and type alone.
fn counted_name(opcode: &str, op: &Op) -> String {
    match op {
        Op::Mma(mma) => format!("mma.sync.m16n8k{}.{}", mma.k, mma.ty.name()),
        _ => opcode.to_owned(),
    }
}

fn statement<'a>(decoder: &mut Decoder<'_, 'a>, stmt: &Stmt<'a>) -> Decoded<Op> {
    let args = stmt.args.as_ref().map_err(Clone::clone)?;
    let parts = Parts { parts: stmt.opcode.split('.').collect(), args };
    match parts.parts[0] {
        "ret" | "exit" => {
            parts.only(&["uni"])?;
            Ok(Op::Exit)
        }
        "bra" => {
            parts.only(&["uni"])?;
            Ok(Op::Bra { target: decoder.label(stmt, parts.arg(0)?)? })
        }
        "brx" => {
            let Arg::Symbol(list) = parts.arg(1)? else { return Err("a list that is no label".into()) };
            let names = decoder.body.targets.get(list).ok_or("a list of targets that is not known")?;
            let targets: Decoded<_> =
                names.iter().map(|name| decoder.label(stmt, &Arg::Symbol(name))).collect();
            Ok(Op::Brx { a: decoder.word(parts.arg(0)?, Ty::U32)?, targets: targets? })
        }
        "trap" => Ok(Op::Trap),
        "nanosleep" | "prefetch" | "prefetchu" | "discard" | "applypriority" | "brkpt" | "pmevent" => {
            Ok(Op::Nop)
        }
        "ld" | "st" | "ldu" | "atom" | "red" | "cp" | "membar" | "fence" | "cvta" => {
            decode_memory::decode(decoder, &parts)
        }
        "shfl" | "vote" | "match" | "activemask" | "elect" | "redux" | "bar" | "barrier" | "ldmatrix"
        | "movmatrix" | "mma" => decode_warp::decode(decoder, &parts),
        "cvt" | "mov" | "setp" | "set" | "selp" | "slct" | "testp" => decode_convert::decode(decoder, &parts),
        _ => decode_alu::decode(decoder, &parts),
    }
}
