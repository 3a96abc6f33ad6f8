//! Operands.

use super::Cursor;

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg<'a> {
    /// A register, by its index in [`super::Body::classes`].
    Reg(u32),
    /// `!%p`.
    Not(u32),
    /// An integer, two's complement.
    Int(u64),
    /// `0f...`.
    Single(u32),
    /// `0d...`, or a decimal fraction.
    Double(u64),
    /// A special register, a label, a variable or a parameter.
    Symbol(&'a str),
    /// `{a, b}`.
    Vector(Vec<Arg<'a>>),
    /// `[base+offset]`.
    Addr(Box<Arg<'a>>, i64),
    /// `p|q`.
    Pair(Box<(Arg<'a>, Arg<'a>)>),
    /// `_`.
    Sink,
}

/// An integer as PTX writes it.
pub fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    let digits = |radix, digits: &str| u64::from_str_radix(digits, radix).ok();
    match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => digits(16, &text[2..]),
        [b'0', b'b' | b'B', ..] => digits(2, &text[2..]),
        [b'0', _, ..] => digits(8, &text[1..]),
        [b'0'..=b'9', ..] => digits(10, text),
        _ => None,
    }
}

/// A number with its sign, or nothing taken.
pub fn literal<'a>(cursor: &mut Cursor<'_, 'a>) -> Option<Arg<'a>> {
    let negative = cursor.peek() == "-";
    let text = cursor.peek_at(usize::from(negative));
    if !text.starts_with(|sign: char| sign.is_ascii_digit()) {
        return None;
    }
    let arg = match text.as_bytes() {
        [b'0', b'f' | b'F', ..] => Arg::Single(u32::from_str_radix(&text[2..], 16).ok()?),
        [b'0', b'd' | b'D', ..] => Arg::Double(u64::from_str_radix(&text[2..], 16).ok()?),
        _ if text.contains('.') => Arg::Double(text.parse::<f64>().ok()?.to_bits()),
        _ => Arg::Int(integer(text)?),
    };
    cursor.next();
    if !negative {
        return Some(arg);
    }
    cursor.next();
    Some(match arg {
        Arg::Int(value) => Arg::Int(value.wrapping_neg()),
        Arg::Single(bits) => Arg::Single(bits ^ 1 << 31),
        Arg::Double(bits) => Arg::Double(bits ^ 1 << 63),
        other => other,
    })
}

/// All operands of a statement; `register` finds the index of a register's name.
pub fn list<'a>(
    cursor: &mut Cursor<'_, 'a>,
    register: &dyn Fn(&str) -> Option<u32>,
) -> Result<Vec<Arg<'a>>, String> {
    let mut out = Vec::new();
    while !cursor.done() {
        out.push(one(cursor, register)?);
        if !cursor.eat(",") && !cursor.done() {
            return Err(format!("operand behind `{}`", cursor.peek()));
        }
    }
    Ok(out)
}

fn one<'a>(cursor: &mut Cursor<'_, 'a>, register: &dyn Fn(&str) -> Option<u32>) -> Result<Arg<'a>, String> {
    if let Some(number) = literal(cursor) {
        return Ok(number);
    }
    let word = cursor.next();
    let arg = match word {
        "!" => {
            let name = cursor.next();
            return register(name).map(Arg::Not).ok_or_else(|| format!("`!{name}` is no register"));
        }
        "_" => Arg::Sink,
        "{" => {
            let mut parts = Vec::new();
            while !cursor.eat("}") {
                parts.push(one(cursor, register)?);
                if !cursor.eat(",") && cursor.peek() != "}" {
                    return Err("a vector with no end".into());
                }
            }
            Arg::Vector(parts)
        }
        "[" => {
            let base = one(cursor, register)?;
            let mut offset = 0_i64;
            while cursor.peek() != "]" {
                let plus = cursor.eat("+");
                match literal(cursor) {
                    Some(Arg::Int(value)) => offset = offset.wrapping_add(value as i64),
                    _ => {
                        return Err(format!(
                            "address with `{}`{}",
                            cursor.peek(),
                            ["", " behind +"][usize::from(plus)]
                        ));
                    }
                }
            }
            cursor.next();
            return Ok(Arg::Addr(Box::new(base), offset));
        }
        _ if word.starts_with(|sign: char| sign.is_ascii_alphabetic() || "_$%".contains(sign)) => {
            register(word).map_or(Arg::Symbol(word), Arg::Reg)
        }
        _ => return Err(format!("operand `{word}`")),
    };
    if cursor.eat("|") {
        return Ok(Arg::Pair(Box::new((arg, one(cursor, register)?))));
    }
    Ok(arg)
}
