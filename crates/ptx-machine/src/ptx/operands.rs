//! Operands to places in the register file.

use super::allocate::Places;
use super::op::{Addr, Cmp, File, NONE, R, Space, Special, Ty};
use super::parse::{Arg, Body, Class, Stmt};
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
    pub place: Vec<R>,
    pub file: File,
    words: HashMap<u32, R>,
    longs: HashMap<u64, R>,
    specials: HashMap<Special, R>,
    /// Offsets in shared memory.
    pub shared: HashMap<&'a str, u32>,
    /// Generic addresses of other variables and of parameters.
    pub symbols: HashMap<&'a str, u64>,
    sinks: [R; 3],
}

fn as_place(index: usize) -> Decoded<R> {
    R::try_from(index).ok().filter(|&place| place != NONE).ok_or_else(|| "too many registers".into())
}

impl<'b, 'a> Decoder<'b, 'a> {
    pub fn new(body: &'b Body<'a>, places: Places) -> Self {
        let [words, longs, preds] = places.sizes;
        Self {
            body,
            place: places.place,
            file: File { words, longs, preds, ..File::default() },
            words: HashMap::new(),
            longs: HashMap::new(),
            specials: HashMap::new(),
            shared: HashMap::new(),
            symbols: HashMap::new(),
            sinks: [NONE; 3],
        }
    }

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
