//! A kernel's body: registers by scope, variables, labels and statements.

use super::{Arg, Cursor, Variable, args, variable};
use crate::ptx::ParseError;
use crate::ptx::op::Ty;
use std::collections::HashMap;

/// Where a register stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Among the predicates.
    Pred,
    /// Among the 32-bit registers, with this many bits of its own.
    Word(u8),
    /// Among the 64-bit registers.
    Long,
}

/// A statement that becomes one instruction.
#[derive(Debug)]
pub struct Stmt<'a> {
    pub line: u32,
    /// Negated?, and the predicate.
    pub guard: Option<(bool, u32)>,
    pub opcode: &'a str,
    /// Operands, or why they could not be read.
    pub args: Result<Vec<Arg<'a>>, String>,
    /// The scope that it stands in.
    pub scope: u32,
}

/// A kernel's body.
#[derive(Debug, Default)]
pub struct Body<'a> {
    /// Registers of all scopes.
    pub classes: Vec<Class>,
    pub stmts: Vec<Stmt<'a>>,
    /// Statement behind a label, by scope and name.
    pub labels: HashMap<(u32, &'a str), u32>,
    /// `.branchtargets` by label.
    pub targets: HashMap<&'a str, Vec<&'a str>>,
    /// Each scope's parent; scope 0 is its own.
    pub parents: Vec<u32>,
    pub shared: Vec<(&'a str, Variable)>,
    pub local: Vec<(&'a str, Variable)>,
    pub end_line: u32,
}

impl<'a> Body<'a> {
    /// The statement that a label of this scope or one around it names.
    pub fn label(&self, mut scope: u32, name: &'a str) -> Option<u32> {
        loop {
            if let Some(&at) = self.labels.get(&(scope, name)) {
                return Some(at);
            }
            let parent = *self.parents.get(scope as usize)?;
            if parent == scope {
                return None;
            }
            scope = parent;
        }
    }
}

/// Reads a body up to the brace that ends it.
pub fn body<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Body<'a>, ParseError> {
    let mut body = Body { parents: vec![0], ..Body::default() };
    let mut names: Vec<(u32, HashMap<String, u32>)> = vec![(0, HashMap::new())];
    loop {
        if cursor.done() {
            return Err(cursor.error("the kernel has no end"));
        }
        let scope = names.last().map_or(0, |&(scope, _)| scope);
        match cursor.peek() {
            "{" => {
                cursor.next();
                body.parents.push(scope);
                names.push((body.parents.len() as u32 - 1, HashMap::new()));
            }
            "}" => {
                body.end_line = cursor.line();
                cursor.next();
                names.pop();
                if names.is_empty() {
                    return Ok(body);
                }
            }
            ";" => drop(cursor.next()),
            ".reg" => {
                cursor.next();
                if let Some((_, names)) = names.last_mut() {
                    registers(cursor, names, &mut body.classes)?;
                }
            }
            space @ (".shared" | ".local") => {
                cursor.next();
                let found = variable(cursor)?;
                cursor.expect(";")?;
                if space == ".shared" { body.shared.push(found) } else { body.local.push(found) }
            }
            word if word.starts_with('.') => drop(cursor.until(";")?),
            name if cursor.peek_at(1) == ":" => {
                cursor.next();
                cursor.next();
                if cursor.eat(".branchtargets") {
                    let list = cursor.until(";")?;
                    let list = list.iter().map(|token| token.text).filter(|&text| text != ",");
                    body.targets.insert(name, list.collect());
                } else if body.labels.insert((scope, name), body.stmts.len() as u32).is_some() {
                    return Err(cursor.error(format!("label `{name}` stands twice")));
                }
            }
            _ => {
                let stmt = statement(cursor, scope, &names)?;
                body.stmts.push(stmt);
            }
        }
    }
}

fn statement<'a>(
    cursor: &mut Cursor<'_, 'a>,
    scope: u32,
    names: &[(u32, HashMap<String, u32>)],
) -> Result<Stmt<'a>, ParseError> {
    let register = |name: &str| names.iter().rev().find_map(|(_, names)| names.get(name).copied());
    let guard = if cursor.eat("@") {
        let not = cursor.eat("!");
        let name = cursor.next();
        let found = register(name).ok_or_else(|| cursor.error(format!("guard `{name}` is no register")))?;
        Some((not, found))
    } else {
        None
    };
    let line = cursor.line();
    let opcode = cursor.next();
    if !opcode.starts_with(|sign: char| sign.is_ascii_lowercase()) {
        return Err(ParseError::new(line, format!("`{opcode}` is no instruction")));
    }
    let mut operands = Cursor::new(cursor.until(";")?);
    let args = args::list(&mut operands, &register);
    Ok(Stmt { line, guard, opcode, args, scope })
}

/// `.b32 %r<10>, %x;`
fn registers(
    cursor: &mut Cursor<'_, '_>,
    names: &mut HashMap<String, u32>,
    classes: &mut Vec<Class>,
) -> Result<(), ParseError> {
    let word = cursor.next();
    let class = match Ty::named(word.strip_prefix('.').unwrap_or_default()) {
        Some(Ty::Pred) => Class::Pred,
        Some(ty) if ty.bits() == 64 => Class::Long,
        Some(ty) => Class::Word(ty.bits() as u8),
        None => return Err(cursor.error(format!("registers of unknown type `{word}`"))),
    };
    loop {
        let name = cursor.next();
        if cursor.eat("<") {
            let count = cursor.number()?;
            cursor.expect(">")?;
            if count > 1 << 20 {
                return Err(cursor.error("too many registers"));
            }
            for index in 0..count {
                names.insert(format!("{name}{index}"), classes.len() as u32);
                classes.push(class);
            }
        } else {
            names.insert(name.to_owned(), classes.len() as u32);
            classes.push(class);
        }
        if !cursor.eat(",") {
            return cursor.expect(";");
        }
    }
}
