//! Statements to instructions.

use super::allocate::Places;
use super::op::{Addr, Cmp, File, Ins, NONE, Op, R, Space, Special, Ty};
use super::parse::{Arg, Body, Class, Globals, Stmt};
use super::{Kernel, ParseError, decode_alu, decode_convert, decode_memory, decode_warp};
use crate::exec::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};
use std::collections::HashMap;

/// What an instruction could not be decoded for.
pub type Decoded<T> = Result<T, String>;

/// A statement's opcode in parts, and its operands.
pub struct Parts<'s, 'a> {
    pub parts: Vec<&'a str>,
    pub args: &'s [Arg<'a>],
}

impl<'s, 'a> Parts<'s, 'a> {
    pub fn has(&self, part: &str) -> bool {
        self.parts[1..].contains(&part)
    }

    /// The type in the last place.
    pub fn ty(&self) -> Decoded<Ty> {
        self.types().last().copied().ok_or_else(|| "no type".into())
    }

    pub fn types(&self) -> Vec<Ty> {
        self.parts[1..].iter().filter_map(|part| Ty::named(part)).collect()
    }

    /// Refuses parts that are neither types nor of this list.
    pub fn only(&self, known: &[&str]) -> Decoded<()> {
        match self.parts[1..].iter().find(|part| Ty::named(part).is_none() && !known.contains(part)) {
            Some(part) => Err(format!("`.{part}` is not known")),
            None => Ok(()),
        }
    }

    pub fn arg(&self, index: usize) -> Decoded<&'s Arg<'a>> {
        self.args.get(index).ok_or_else(|| format!("no operand {}", index + 1))
    }

    pub fn count(&self, counts: std::ops::RangeInclusive<usize>) -> Decoded<()> {
        if counts.contains(&self.args.len()) { Ok(()) } else { Err(format!("{} operands", self.args.len())) }
    }
}

/// Finds places for operands.
pub struct Decoder<'b, 'a> {
    pub body: &'b Body<'a>,
    place: Vec<R>,
    pub file: File,
    words: HashMap<u32, R>,
    longs: HashMap<u64, R>,
    specials: HashMap<Special, R>,
    /// Offsets in shared memory.
    shared: HashMap<&'a str, u32>,
    /// Generic addresses of other variables and of parameters.
    symbols: HashMap<&'a str, u64>,
    sinks: [R; 3],
}

fn as_place(index: usize) -> Decoded<R> {
    R::try_from(index).ok().filter(|&place| place != NONE).ok_or_else(|| "too many registers".into())
}

impl<'b, 'a> Decoder<'b, 'a> {
    /// A register's place.
    fn register(&self, register: u32) -> Decoded<R> {
        let place = self.place[register as usize];
        if place == NONE { Err("too many registers".into()) } else { Ok(place) }
    }

    pub fn class(&self, arg: &Arg<'_>) -> Option<Class> {
        match arg {
            Arg::Reg(register) | Arg::Not(register) => self.body.classes.get(*register as usize).copied(),
            _ => None,
        }
    }

    /// The place of a 32-bit constant.
    pub fn word_constant(&mut self, value: u32) -> Decoded<R> {
        if let Some(&place) = self.words.get(&value) {
            return Ok(place);
        }
        let place = as_place(self.file.words)?;
        self.file.words += 1;
        self.file.word_constants.push((place, value));
        self.words.insert(value, place);
        Ok(place)
    }

    /// The place of a 64-bit constant.
    pub fn long_constant(&mut self, value: u64) -> Decoded<R> {
        if let Some(&place) = self.longs.get(&value) {
            return Ok(place);
        }
        let place = as_place(self.file.longs)?;
        self.file.longs += 1;
        self.file.long_constants.push((place, value));
        self.longs.insert(value, place);
        Ok(place)
    }

    fn special(&mut self, special: Special) -> Decoded<R> {
        if let Some(&place) = self.specials.get(&special) {
            return Ok(place);
        }
        let place = as_place(self.file.words)?;
        self.file.words += 1;
        self.file.specials.push((place, special));
        self.specials.insert(special, place);
        Ok(place)
    }

    /// A constant predicate: what `set`'s and vote's immediate operands are.
    fn pred_constant(&mut self, value: bool) -> Decoded<R> {
        let found = self.file.pred_constants.iter().find(|&&(_, held)| held == value);
        if let Some(&(place, _)) = found {
            return Ok(place);
        }
        let place = as_place(self.file.preds)?;
        self.file.preds += 1;
        self.file.pred_constants.push((place, value));
        Ok(place)
    }

    /// A source of 32 bits or fewer; constants are cut to the type's bits.
    pub fn word(&mut self, arg: &Arg<'a>, ty: Ty) -> Decoded<R> {
        let cut = if ty.bits() < 32 && ty != Ty::Pred { (1 << ty.bits()) - 1 } else { u32::MAX };
        match arg {
            Arg::Reg(register) => match self.body.classes[*register as usize] {
                Class::Word(_) => self.register(*register),
                _ => Err("a register of the wrong size".into()),
            },
            Arg::Int(value) => self.word_constant(*value as u32 & cut),
            Arg::Single(bits) => self.word_constant(*bits),
            Arg::Double(bits) if ty == Ty::F32 => {
                self.word_constant((f64::from_bits(*bits) as f32).to_bits())
            }
            Arg::Symbol(name) => match (special(name), self.shared.get(name)) {
                (Some(found), _) => self.special(found),
                (None, Some(&offset)) => self.word_constant(offset),
                (None, None) => Err(format!("`{name}` is not known")),
            },
            _ => Err("an operand of the wrong kind".into()),
        }
    }

    /// A source of 64 bits.
    pub fn long(&mut self, arg: &Arg<'a>, ty: Ty) -> Decoded<R> {
        match arg {
            Arg::Reg(register) => match self.body.classes[*register as usize] {
                Class::Long => self.register(*register),
                _ => Err("a register of the wrong size".into()),
            },
            Arg::Int(value) => self.long_constant(*value),
            Arg::Double(bits) => self.long_constant(*bits),
            Arg::Single(bits) if ty == Ty::F64 => {
                self.long_constant(f64::from(f32::from_bits(*bits)).to_bits())
            }
            Arg::Symbol(name) => match (self.shared.get(name), self.symbols.get(name)) {
                (Some(&offset), _) => self.long_constant(u64::from(offset)),
                (None, Some(&address)) => self.long_constant(address),
                (None, None) if *name == "%gridid" => self.long_constant(0),
                (None, None) => Err(format!("`{name}` is not known")),
            },
            _ => Err("an operand of the wrong kind".into()),
        }
    }

    /// A source of this type.
    pub fn source(&mut self, arg: &Arg<'a>, ty: Ty) -> Decoded<R> {
        if ty.bits() == 64 { self.long(arg, ty) } else { self.word(arg, ty) }
    }

    /// A destination of this type.
    pub fn dest(&mut self, arg: &Arg<'a>, ty: Ty) -> Decoded<R> {
        self.dest_in(arg, if ty == Ty::Pred { 2 } else { usize::from(ty.bits() == 64) })
    }

    /// A destination among words (0), longs (1) or predicates (2).
    pub fn dest_in(&mut self, arg: &Arg<'a>, kind: usize) -> Decoded<R> {
        match arg {
            Arg::Reg(register) => {
                let class = self.body.classes[*register as usize];
                let is = match class {
                    Class::Word(_) => 0,
                    Class::Long => 1,
                    Class::Pred => 2,
                };
                if is == kind { self.register(*register) } else { Err("a register of the wrong size".into()) }
            }
            Arg::Sink => {
                if self.sinks[kind] == NONE {
                    let size = match kind {
                        0 => &mut self.file.words,
                        1 => &mut self.file.longs,
                        _ => &mut self.file.preds,
                    };
                    self.sinks[kind] = as_place(*size)?;
                    *size += 1;
                }
                Ok(self.sinks[kind])
            }
            _ => Err("a destination that is no register".into()),
        }
    }

    /// A predicate, perhaps negated.
    pub fn pred(&mut self, arg: &Arg<'a>) -> Decoded<(R, bool)> {
        match arg {
            Arg::Reg(register) | Arg::Not(register) => {
                if self.body.classes[*register as usize] != Class::Pred {
                    return Err("an operand that is no predicate".into());
                }
                Ok((self.register(*register)?, matches!(arg, Arg::Not(_))))
            }
            Arg::Int(value) => Ok((self.pred_constant(*value != 0)?, false)),
            _ => Err("an operand that is no predicate".into()),
        }
    }

    /// An address in brackets.
    pub fn addr(&mut self, arg: &Arg<'a>) -> Decoded<Addr> {
        let Arg::Addr(base, offset) = arg else { return Err("an operand that is no address".into()) };
        let fixed = |at: u64| Addr { base: NONE, long: true, offset: (at as i64).wrapping_add(*offset) };
        match &**base {
            Arg::Reg(register) => {
                let long = match self.body.classes[*register as usize] {
                    Class::Long => true,
                    Class::Word(32) => false,
                    _ => return Err("an address of the wrong size".into()),
                };
                Ok(Addr { base: self.register(*register)?, long, offset: *offset })
            }
            Arg::Int(at) => Ok(fixed(*at)),
            Arg::Symbol(name) => match (self.shared.get(name), self.symbols.get(name)) {
                (Some(&at), _) => Ok(fixed(u64::from(at))),
                (None, Some(&at)) => Ok(fixed(at)),
                (None, None) => Err(format!("`{name}` is not known")),
            },
            _ => Err("an address of an unknown kind".into()),
        }
    }

    /// The statement behind a label.
    pub fn label(&self, stmt: &Stmt<'a>, arg: &Arg<'a>) -> Decoded<u32> {
        match arg {
            Arg::Symbol(name) => {
                self.body.label(stmt.scope, name).ok_or_else(|| format!("label `{name}` is not known"))
            }
            _ => Err("a target that is no label".into()),
        }
    }
}

/// A special register that stands in the file.
fn special(name: &str) -> Option<Special> {
    let axis = |make: fn(u8) -> Special| match name.as_bytes().last()? {
        b'x' => Some(make(0)),
        b'y' => Some(make(1)),
        b'z' => Some(make(2)),
        _ => None,
    };
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::Nwarpid,
        "%smid" => Special::SmId,
        "%nsmid" => Special::Nsmid,
        "WARP_SZ" => Special::WarpSize,
        "%lanemask_eq" => Special::LaneMask(Cmp::Eq),
        "%lanemask_le" => Special::LaneMask(Cmp::Le),
        "%lanemask_lt" => Special::LaneMask(Cmp::Lt),
        "%lanemask_ge" => Special::LaneMask(Cmp::Ge),
        "%lanemask_gt" => Special::LaneMask(Cmp::Gt),
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%gridid" => Special::Zero,
        _ if name.starts_with("%tid.") => axis(Special::Tid)?,
        _ if name.starts_with("%ntid.") => axis(Special::Ntid)?,
        _ if name.starts_with("%ctaid.") => axis(Special::Ctaid)?,
        _ if name.starts_with("%nctaid.") => axis(Special::Nctaid)?,
        _ => return None,
    })
}

/// Decodes a kernel's body.
pub fn kernel(
    body: &Body<'_>,
    places: Places,
    globals: &Globals<'_>,
    kernel: &mut Kernel,
) -> Result<(), ParseError> {
    let [words, longs, preds] = places.sizes;
    let mut decoder = Decoder {
        body,
        place: places.place,
        file: File { words, longs, preds, ..File::default() },
        words: HashMap::new(),
        longs: HashMap::new(),
        specials: HashMap::new(),
        shared: HashMap::new(),
        symbols: HashMap::new(),
        sinks: [NONE; 3],
    };
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
    for (name, _) in all.iter().filter(|(_, variable)| variable.dynamic) {
        decoder.shared.insert(name, bytes.next_multiple_of(16));
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

/// The space that an opcode names.
pub fn space(parts: &Parts<'_, '_>) -> Space {
    let named = parts.parts[1..].iter().find_map(|part| match part.split("::").next()? {
        "global" => Some(Space::Global),
        "shared" => Some(Space::Shared),
        "param" => Some(Space::Param),
        "const" => Some(Space::Const),
        "local" => Some(Space::Local),
        _ => None,
    });
    named.unwrap_or(Space::Generic)
}
