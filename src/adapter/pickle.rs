//! The part of Python's pickle (protocol 2) that `torch.save` uses for a dictionary of tensors.
//!
//! A pickle is a program for a small stack machine, and in Python it may call anything. Here the only calls are the three
//! that rebuild tensors and an empty dictionary; every other one is refused by its name. Each byte of the program makes at
//! most one object, what objects share is short, and nothing recurses: a hostile file costs a small multiple of its length.

use std::collections::BTreeMap;

type Read<T> = std::result::Result<T, String>;

/// Of a tensor; adapters have one or two.
const MAX_DIMENSIONS: usize = 8;
/// Bytes of a storage's class and of its key, which counts the storages.
const MAX_STORAGE_NAME: usize = 64;

/// One tensor: a view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    /// The storage's class without its module, such as `FloatStorage`.
    pub(crate) storage: String,
    /// Its entry in the archive.
    pub(crate) key: String,
    /// Elements before the first one.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// In elements.
    pub(crate) strides: Vec<usize>,
}

/// An object of the machine; containers hold places in its memory, so that a later change shows everywhere.
#[derive(Debug, Clone)]
enum Object {
    Mark,
    /// None, a number with a fraction, a list: nothing that a tensor is made of.
    Other,
    Bool,
    Int(i64),
    Text(String),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Global(String),
    Storage {
        class: String,
        key: String,
    },
    Tensor(View),
}

/// Reads the dictionary.
pub(crate) fn read(program: &[u8]) -> Read<BTreeMap<String, View>> {
    let mut machine = Machine { program, at: 0, objects: Vec::new(), stack: Vec::new(), memo: Vec::new() };
    while !machine.step()? {}
    let top = machine.pop()?;
    let Object::Dict(entries) = &machine.objects[top] else {
        return Err(format!("{} at the top", machine.describe(top)));
    };
    let mut views = BTreeMap::new();
    for &(key, value) in entries {
        match (&machine.objects[key], &machine.objects[value]) {
            (Object::Text(name), _) if views.contains_key(name) => return Err(format!("{name:?} twice")),
            (Object::Text(name), Object::Tensor(view)) => views.insert(name.clone(), view.clone()),
            (Object::Text(name), _) => return Err(format!("{} under {name:?}", machine.describe(value))),
            _ => return Err(format!("{} as a name", machine.describe(key))),
        };
    }
    Ok(views)
}

struct Machine<'p> {
    program: &'p [u8],
    at: usize,
    objects: Vec<Object>,
    stack: Vec<usize>,
    /// Numbers in the order of their first use, as the writer counts them.
    memo: Vec<usize>,
}

impl Machine<'_> {
    /// Runs one instruction; true at the end.
    fn step(&mut self) -> Read<bool> {
        match self.byte()? {
            0x80 => match self.byte()? {
                2 => {}
                other => return Err(format!("protocol {other}")),
            },
            b'.' => return Ok(true),
            b'(' => self.push(Object::Mark),
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items));
            }
            count @ 0x85..=0x87 => {
                let start =
                    self.stack.len().checked_sub(usize::from(count - 0x84)).ok_or("an empty stack")?;
                let items = self.stack.split_off(start);
                self.push(Object::Tuple(items));
            }
            b'q' => {
                let number = self.byte()?;
                self.remember(number.into())?;
            }
            b'r' => {
                let number = self.array().map(u32::from_le_bytes)?;
                self.remember(number as usize)?;
            }
            b'h' => {
                let number = self.byte()?;
                self.recall(number.into())?;
            }
            b'j' => {
                let number = self.array().map(u32::from_le_bytes)?;
                self.recall(number as usize)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.put(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.put(items)?;
            }
            // An ordered dictionary's attributes, such as its _metadata: no tensors.
            b'b' => {
                self.pop()?;
                let under = *self.stack.last().ok_or("an empty stack")?;
                if !matches!(self.objects[under], Object::Dict(_)) {
                    return Err(format!("attributes for {}", self.describe(under)));
                }
            }
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            other => self.constant(other)?,
        }
        Ok(false)
    }

    /// An instruction that pushes what stands behind it in the program, or something empty.
    fn constant(&mut self, instruction: u8) -> Read<()> {
        match instruction {
            b'N' => self.push(Object::Other),
            0x88 | 0x89 => self.push(Object::Bool),
            b'K' => {
                let value = self.byte()?;
                self.push(Object::Int(value.into()));
            }
            b'M' => {
                let value = self.array().map(u16::from_le_bytes)?;
                self.push(Object::Int(value.into()));
            }
            b'J' => {
                let value = self.array().map(i32::from_le_bytes)?;
                self.push(Object::Int(value.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Object::Other);
            }
            b'X' => {
                let length = self.array().map(u32::from_le_bytes)?;
                let text = std::str::from_utf8(self.take(length as usize)?).map_err(|e| e.to_string())?;
                let text = text.to_owned();
                self.push(Object::Text(text));
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Object::Global(format!("{module}.{name}")));
            }
            b')' => self.push(Object::Tuple(Vec::new())),
            b']' => self.push(Object::Other),
            b'}' => self.push(Object::Dict(Vec::new())),
            other => return Err(format!("instruction {other:#04x} at byte {}", self.at - 1)),
        }
        Ok(())
    }

    /// `('storage', class, key, device, elements)`.
    fn persistent(&mut self) -> Read<()> {
        let id = self.pop()?;
        let Object::Tuple(items) = &self.objects[id] else {
            return Err("a persistent id of another form".into());
        };
        let parts: Vec<&Object> = items.iter().map(|&item| &self.objects[item]).collect();
        let [Object::Text(kind), Object::Global(class), Object::Text(key), ..] = parts[..] else {
            return Err("a persistent id of another form".into());
        };
        let class = class.strip_prefix("torch.").filter(|_| kind == "storage");
        let class = class.ok_or_else(|| format!("a persistent id {kind:?}"))?.to_owned();
        if class.len().max(key.len()) > MAX_STORAGE_NAME {
            return Err("a long name of a storage".into());
        }
        let key = key.clone();
        self.push(Object::Storage { class, key });
        Ok(())
    }

    fn call(&mut self) -> Read<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Object::Tuple(arguments), Object::Global(function)) =
            (&self.objects[arguments], &self.objects[function])
        else {
            return Err("a call of something that is no function".into());
        };
        let made = match function.as_str() {
            "collections.OrderedDict" if arguments.is_empty() => Object::Dict(Vec::new()),
            "torch._utils._rebuild_tensor_v2" => self.view(arguments)?,
            "torch._utils._rebuild_parameter" => match arguments.first().map(|&tensor| &self.objects[tensor])
            {
                Some(tensor @ Object::Tensor(_)) => tensor.clone(),
                _ => return Err("a parameter of no tensor".into()),
            },
            other => return Err(format!("a call of {other}")),
        };
        self.push(made);
        Ok(())
    }

    /// `(storage, offset, shape, strides, ..)`. Its parts are copied, so they are bounded: one tuple may serve many tensors.
    fn view(&self, arguments: &[usize]) -> Read<Object> {
        let parts: Vec<&Object> = arguments.iter().map(|&argument| &self.objects[argument]).collect();
        let [
            Object::Storage { class, key },
            Object::Int(offset),
            Object::Tuple(shape),
            Object::Tuple(strides),
            ..,
        ] = parts[..]
        else {
            return Err("a tensor of another form".into());
        };
        let offset = usize::try_from(*offset).map_err(|e| e.to_string())?;
        let (storage, key) = (class.clone(), key.clone());
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        Ok(Object::Tensor(View { storage, key, offset, shape, strides }))
    }

    fn sizes(&self, items: &[usize]) -> Read<Vec<usize>> {
        let size = |&item: &usize| match self.objects[item] {
            Object::Int(size) => usize::try_from(size).map_err(|e| e.to_string()),
            _ => Err(format!("{} as a size", self.describe(item))),
        };
        if items.len() > MAX_DIMENSIONS {
            return Err(format!("{} dimensions", items.len()));
        }
        items.iter().map(size).collect()
    }

    /// A whole number of up to 8 bytes.
    fn long(&mut self) -> Read<()> {
        let length = self.byte()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return Err(format!("a number of {length} bytes"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    /// Puts keys and values, one after the other, into the dictionary below them.
    fn put(&mut self, items: Vec<usize>) -> Read<()> {
        if !items.len().is_multiple_of(2) {
            return Err("a name without a value".into());
        }
        let under = *self.stack.last().ok_or("an empty stack")?;
        let Object::Dict(entries) = &mut self.objects[under] else {
            return Err("entries for something that is no dictionary".into());
        };
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    fn since_mark(&mut self) -> Read<Vec<usize>> {
        let is_mark = |&object: &usize| matches!(self.objects[object], Object::Mark);
        let mark = self.stack.iter().rposition(is_mark).ok_or("no mark")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn remember(&mut self, number: usize) -> Read<()> {
        let top = *self.stack.last().ok_or("an empty stack")?;
        match number.cmp(&self.memo.len()) {
            std::cmp::Ordering::Less => self.memo[number] = top,
            std::cmp::Ordering::Equal => self.memo.push(top),
            std::cmp::Ordering::Greater => return Err(format!("memo {number} after {}", self.memo.len())),
        }
        Ok(())
    }

    fn recall(&mut self, number: usize) -> Read<()> {
        let object = *self.memo.get(number).ok_or_else(|| format!("memo {number}, never set"))?;
        self.stack.push(object);
        Ok(())
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.objects.len());
        self.objects.push(object);
    }

    fn pop(&mut self) -> Read<usize> {
        self.stack.pop().ok_or_else(|| "an empty stack".to_owned())
    }

    fn byte(&mut self) -> Read<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "the end".to_owned())
    }

    fn take(&mut self, length: usize) -> Read<&[u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.program.len());
        let taken = &self.program[self.at..end.ok_or("the end in the middle")?];
        self.at += length;
        Ok(taken)
    }

    fn line(&mut self) -> Read<String> {
        let rest = &self.program[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("the end in the middle")?;
        let line = std::str::from_utf8(&rest[..length]).map_err(|e| e.to_string())?.to_owned();
        self.at += length + 1;
        Ok(line)
    }

    fn describe(&self, object: usize) -> String {
        match &self.objects[object] {
            Object::Mark | Object::Other => "something that is no tensor".to_owned(),
            Object::Bool => "a truth value".to_owned(),
            Object::Int(value) => value.to_string(),
            Object::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
            Object::Tuple(items) => format!("a tuple of {}", items.len()),
            Object::Dict(entries) => format!("a dictionary of {}", entries.len()),
            Object::Global(name) => format!("the name {name}"),
            Object::Storage { .. } => "a storage".to_owned(),
            Object::Tensor(view) => format!("a tensor of {:?}", view.shape),
        }
    }
}
