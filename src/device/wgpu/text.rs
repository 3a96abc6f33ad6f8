//! The generated header of a shader: constants, parameters, and one accessor per bound tensor, so that a kernel's
//! body says `x_pair(i)` and `y_put_pair(i, v, 2u)` whatever the element type.

use crate::element::ElementType;
use std::borrow::Cow;
use std::fmt::Write;

/// How a kernel uses a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

/// What a bound buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tensor {
    /// Elements behind accessors that count from the view's first element.
    Elements(ElementType),
    /// i32 ids, likewise.
    Ids,
    /// A table of this WGSL type, read by its name.
    Table(&'static str),
}

impl Tensor {
    /// Bytes of one element, where views may begin at any element.
    pub(crate) fn element_bytes(self) -> Option<usize> {
        match self {
            Self::Elements(e) => Some(e.bytes()),
            Self::Ids => Some(4),
            Self::Table(_) => None,
        }
    }
}

/// The declarations of one binding: the variable, and for elements its accessors
/// `NAME_at(i)`, `NAME_pair(i)` (two from an even place on; f32: from any), `NAME_put(i, v)` (not for 16 bits),
/// `NAME_put_pair(i, v, count)` (the first `count` of two, from an even place on).
pub(crate) fn declare(text: &mut String, index: usize, name: &str, tensor: Tensor, access: Access) {
    let writes = access == Access::ReadWrite;
    let access = if writes { "read_write" } else { "read" };
    let ty = match tensor {
        Tensor::Elements(ElementType::F32) => "array<f32>",
        Tensor::Elements(_) => "array<u32>",
        Tensor::Ids => "array<i32>",
        Tensor::Table(ty) => ty,
    };
    let at = format!("params.{name}_first + i");
    put(text, format_args!("@group(0) @binding({index}) var<storage, {access}> {name}: {ty};"));
    match tensor {
        Tensor::Table(_) => {}
        Tensor::Ids => {
            put(text, format_args!("fn {name}_at(i: u32) -> i32 {{ return {name}[{at}]; }}"));
            if writes {
                put(text, format_args!("fn {name}_put(i: u32, v: i32) {{ {name}[{at}] = v; }}"));
            }
        }
        Tensor::Elements(ElementType::F32) => {
            put(text, format_args!("fn {name}_at(i: u32) -> f32 {{ return {name}[{at}]; }}"));
            let pair = format!("vec2({name}[{at}], {name}[{at} + 1u])");
            put(text, format_args!("fn {name}_pair(i: u32) -> vec2<f32> {{ return {pair}; }}"));
            if writes {
                put(text, format_args!("fn {name}_put(i: u32, v: f32) {{ {name}[{at}] = v; }}"));
                let second = format!("if (count == 2u) {{ {name}[{at} + 1u] = v.y; }}");
                declare_put_pair(text, name, &format!("{name}[{at}] = v.x; {second}"));
            }
        }
        Tensor::Elements(ElementType::F16) => {
            declare_packed(text, name, &at, ("unpack2x16float", "narrow_f16"), writes);
        }
        Tensor::Elements(ElementType::Bf16) => {
            declare_packed(text, name, &at, ("widen_bf16", "narrow_bf16"), writes)
        }
    }
}

/// Two 16-bit elements to the word.
fn declare_packed(text: &mut String, name: &str, at: &str, (widen, narrow): (&str, &str), writes: bool) {
    let word = format!("{name}[({at}) >> 1u]");
    put(text, format_args!("fn {name}_pair(i: u32) -> vec2<f32> {{ return {widen}({word}); }}"));
    put(text, format_args!("fn {name}_at(i: u32) -> f32 {{ return {name}_pair(i)[i & 1u]; }}"));
    if writes {
        // The upper half of a row's last word is padding, which stays as it is.
        let two = format!("{word} = {narrow}(v.x) | ({narrow}(v.y) << 16u);");
        let one = format!("{word} = {narrow}(v.x) | ({word} & 0xffff0000u);");
        declare_put_pair(text, name, &format!("if (count == 2u) {{ {two} }} else {{ {one} }}"));
    }
}

fn declare_put_pair(text: &mut String, name: &str, body: &str) {
    put(text, format_args!("fn {name}_put_pair(i: u32, v: vec2<f32>, count: u32) {{ {body} }}"));
}

/// A `struct Params` of u32 fields, bound as a uniform.
pub(crate) fn declare_params(text: &mut String, index: usize, params: &[(Cow<'static, str>, u32)]) {
    text.push_str("struct Params { ");
    for (name, _) in params {
        text.push_str(name);
        text.push_str(": u32, ");
    }
    text.push_str("}\n");
    put(text, format_args!("@group(0) @binding({index}) var<uniform> params: Params;"));
}

/// `const NAME: u32 = value;` for each.
pub(crate) fn declare_constants(text: &mut String, constants: &[(&'static str, u32)]) {
    for (name, value) in constants {
        put(text, format_args!("const {name}: u32 = {value}u;"));
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}
