//! Statements out of tokens: directives, variables, scopes, labels, operands.

mod args;
mod body;

use super::lexer::{Token, tokens};
use super::op::Ty;
use super::{Kernel, Module, Param, ParseError, allocate, decode};
pub use args::Arg;
pub use body::{Body, Class, Stmt};
use std::collections::{BTreeMap, HashMap};

/// Reads tokens one after the other.
pub struct Cursor<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    pub fn new(tokens: &'t [Token<'a>]) -> Self {
        Self { tokens, at: 0 }
    }

    pub fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(0, |token| token.line)
    }

    pub fn peek(&self) -> &'a str {
        self.peek_at(0)
    }

    /// The text some tokens ahead; nothing behind the end.
    pub fn peek_at(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.at + ahead).map_or("", |token| token.text)
    }

    pub fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub fn next(&mut self) -> &'a str {
        let text = self.peek();
        self.at += 1;
        text
    }

    /// Takes a token if it is this one.
    pub fn eat(&mut self, text: &str) -> bool {
        let is = !self.done() && self.peek() == text;
        self.at += usize::from(is);
        is
    }

    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.line(), message)
    }

    pub fn expect(&mut self, text: &str) -> Result<(), ParseError> {
        if self.eat(text) {
            return Ok(());
        }
        Err(self.error(format!("expected `{text}`, got `{}`", self.peek())))
    }

    pub fn number(&mut self) -> Result<u64, ParseError> {
        let text = self.peek();
        let number = args::integer(text).ok_or_else(|| self.error(format!("`{text}` is no number")))?;
        self.at += 1;
        Ok(number)
    }

    /// The tokens up to a sign outside of braces, which is taken too.
    pub fn until(&mut self, sign: &str) -> Result<&'t [Token<'a>], ParseError> {
        let start = self.at;
        let mut depth = 0;
        while !self.done() {
            match self.peek() {
                text if text == sign && depth == 0 => {
                    self.at += 1;
                    return Ok(&self.tokens[start..self.at - 1]);
                }
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
        self.at = start;
        Err(self.error(format!("no `{sign}` follows")))
    }
}

/// A variable in a state space.
#[derive(Debug, Clone)]
pub struct Variable {
    pub bytes: u32,
    pub align: u32,
    /// `extern`: its size comes with the launch.
    pub dynamic: bool,
}

/// Names outside of kernels.
#[derive(Default)]
pub struct Globals<'a> {
    /// Shared variables in order.
    pub shared: Vec<(&'a str, Variable)>,
    /// Places in [`Module::constants`].
    pub constants: HashMap<&'a str, u64>,
}

/// Parses a module.
pub fn module(text: &str) -> Result<Module, ParseError> {
    let tokens = tokens(text)?;
    let mut cursor = Cursor::new(&tokens);
    let mut globals = Globals::default();
    let mut module = Module {
        version: String::new(),
        target: String::new(),
        kernels: BTreeMap::new(),
        constants: Vec::new(),
        lines: text.lines().map(str::to_owned).collect(),
    };
    while !cursor.done() {
        match cursor.next() {
            ".version" => module.version = cursor.next().to_owned(),
            ".target" => {
                module.target = cursor.next().to_owned();
                while cursor.eat(",") {
                    cursor.next();
                }
            }
            ".address_size" => {
                if cursor.number()? != 64 {
                    return Err(cursor.error("only 64-bit addresses are known"));
                }
            }
            ".visible" | ".weak" | ".extern" | ".common" => {}
            ".entry" => {
                let kernel = entry(&mut cursor, &globals)?;
                module.kernels.insert(kernel.name.clone(), kernel);
            }
            ".func" | ".section" => skip_function(&mut cursor)?,
            ".pragma" | ".alias" => drop(cursor.until(";")?),
            ".shared" => {
                let (name, variable) = variable(&mut cursor)?;
                cursor.expect(";")?;
                globals.shared.push((name, variable));
            }
            ".const" | ".global" => constant(&mut cursor, &mut globals, &mut module.constants)?,
            other => {
                cursor.at -= 1;
                return Err(cursor.error(format!("`{other}` is not known here")));
            }
        }
    }
    if module.version.is_empty() || module.target.is_empty() {
        return Err(ParseError::new(1, "no .version or no .target"));
    }
    Ok(module)
}

/// Device functions are not executed; a `call` is an unknown instruction.
fn skip_function(cursor: &mut Cursor<'_, '_>) -> Result<(), ParseError> {
    while !cursor.done() {
        match cursor.next() {
            ";" => return Ok(()),
            "{" => return cursor.until("}").map(drop),
            _ => {}
        }
    }
    Err(cursor.error("function has no end"))
}

/// `.align 4 .b8 name[16]`; the element type's alignment where none is given.
pub fn variable<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<(&'a str, Variable), ParseError> {
    let (mut align, mut ty) = (0, None);
    while cursor.peek().starts_with('.') {
        match cursor.next() {
            ".align" => align = cursor.number()?,
            word => ty = ty.or(Ty::named(&word[1..])),
        }
    }
    let ty = ty.ok_or_else(|| cursor.error("variable of an unknown type"))?;
    let name = cursor.next();
    let (mut count, mut dynamic) = (1_u64, false);
    while cursor.eat("[") {
        if cursor.peek() == "]" {
            dynamic = true;
            count = 0;
        } else {
            count = count.saturating_mul(cursor.number()?);
        }
        cursor.expect("]")?;
    }
    let size = u64::from(ty.bits() / 8);
    let align = if align == 0 { size.max(1) } else { align };
    let bytes = count.saturating_mul(size);
    if bytes > 1 << 24 || !align.is_power_of_two() || align > 1 << 12 {
        return Err(cursor.error(format!("variable `{name}` of {bytes} bytes at multiples of {align}")));
    }
    Ok((name, Variable { bytes: bytes as u32, align: align as u32, dynamic }))
}

/// A `.const` or `.global` variable with its contents; zeros where there are none.
fn constant<'a>(
    cursor: &mut Cursor<'_, 'a>,
    globals: &mut Globals<'a>,
    bytes: &mut Vec<u8>,
) -> Result<(), ParseError> {
    let start = cursor.at;
    let (name, variable) = variable(cursor)?;
    let width = cursor.tokens[start..cursor.at]
        .iter()
        .find_map(|token| Ty::named(token.text.strip_prefix('.')?))
        .map_or(1, |ty| ty.bits() as usize / 8);
    while !bytes.len().is_multiple_of(variable.align as usize) {
        bytes.push(0);
    }
    let place = bytes.len();
    bytes.resize(place + variable.bytes as usize, 0);
    globals.constants.insert(name, place as u64);
    if cursor.eat("=") {
        let values = cursor.until(";")?;
        let mut at = place;
        let mut values = Cursor::new(values);
        while !values.done() {
            if matches!(values.peek(), "{" | "}" | ",") {
                values.next();
                continue;
            }
            let value = match args::literal(&mut values) {
                Some(Arg::Int(value) | Arg::Double(value)) => value,
                Some(Arg::Single(value)) => u64::from(value),
                _ => return Err(values.error("an initialiser that is no number")),
            };
            let Some(out) = bytes.get_mut(at..at + width) else {
                return Err(values.error("more initialisers than elements"));
            };
            out.copy_from_slice(&value.to_le_bytes()[..width]);
            at += width;
        }
        return Ok(());
    }
    cursor.expect(";")
}

fn entry<'a>(cursor: &mut Cursor<'_, 'a>, globals: &Globals<'a>) -> Result<Kernel, ParseError> {
    let line = cursor.line();
    let mut kernel = Kernel {
        name: cursor.next().to_owned(),
        line,
        params: Vec::new(),
        param_bytes: 0,
        static_shared_bytes: 0,
        dynamic_shared_at: 0,
        uses_dynamic_shared: false,
        local_bytes: 0,
        max_threads: None,
        required_threads: None,
        min_blocks: None,
        code: Vec::new(),
        names: Vec::new(),
        file: super::op::File::default(),
        unknown: Vec::new(),
    };
    if cursor.eat("(") {
        while !cursor.eat(")") {
            cursor.expect(".param")?;
            let (name, variable) = variable(cursor)?;
            let offset = kernel.param_bytes.next_multiple_of(variable.align);
            kernel.param_bytes = offset + variable.bytes;
            let (size, align) = (variable.bytes, variable.align);
            kernel.params.push(Param { name: name.to_owned(), offset, size, align });
            cursor.eat(",");
        }
    }
    while !cursor.eat("{") {
        match cursor.next() {
            ".maxntid" => kernel.max_threads = Some(triple(cursor)?.iter().product()),
            ".reqntid" => kernel.required_threads = Some(triple(cursor)?),
            ".minnctapersm" => kernel.min_blocks = Some(triple(cursor)?[0]),
            ".maxnreg" | ".maxnctapersm" => drop(triple(cursor)?),
            ".pragma" => drop(cursor.until(";")?),
            ".noreturn" => {}
            other => return Err(cursor.error(format!("`{other}` is not known before a kernel's body"))),
        }
    }
    let body = body::body(cursor)?;
    let places = allocate::places(&body);
    decode::kernel(&body, places, globals, &mut kernel)?;
    Ok(kernel)
}

/// One to three numbers; missing ones are 1.
fn triple(cursor: &mut Cursor<'_, '_>) -> Result<[u32; 3], ParseError> {
    let mut out = [1; 3];
    for (axis, place) in out.iter_mut().enumerate() {
        if axis == 0 || cursor.eat(",") {
            *place = u32::try_from(cursor.number()?).map_err(|_| cursor.error("number too large"))?;
        }
    }
    Ok(out)
}
