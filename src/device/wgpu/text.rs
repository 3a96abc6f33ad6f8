//! The generated header of a shader: constants, parameters, and one accessor per bound tensor, so that a kernel's
//! body says `x_quad(i)` and `y_put_pair(i, v, 2u)` whatever the element type.

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
    /// The same, four at a time: rows and the view start at multiples of four.
    Quads(ElementType),
    /// A pool's table of slots, then quads: `NAME_slot(e)` beside the accessors.
    SlotsAndQuads(ElementType),
    /// i32 ids, likewise.
    Ids,
    /// u32 words, likewise, read only.
    Words,
    /// A table of this WGSL type, read by its name.
    Table(&'static str),
}

impl Tensor {
    /// Bytes of one element, where views may begin at any element.
    pub(crate) fn element_bytes(self) -> Option<usize> {
        match self {
            Self::Elements(e) | Self::Quads(e) | Self::SlotsAndQuads(e) => Some(e.bytes()),
            Self::Ids | Self::Words => Some(4),
            Self::Table(_) => None,
        }
    }

    /// Whether it is declared with f16's own type where the device has that; slots' words are no halves.
    pub(crate) fn loads_halves(self, access: Access) -> bool {
        matches!(self, Self::Elements(ElementType::F16) | Self::Quads(ElementType::F16))
            && access == Access::Read
    }

    fn wgsl_halves(self) -> &'static str {
        if let Self::Quads(_) = self { "array<vec4<f16>>" } else { "array<f16>" }
    }

    fn wgsl(self) -> &'static str {
        match self {
            Self::Elements(ElementType::F32) => "array<f32>",
            Self::Elements(_) => "array<u32>",
            Self::Quads(ElementType::F32) => "array<vec4<f32>>",
            // A slot's words must never pass through floats, which may lose bits that look like small ones.
            Self::SlotsAndQuads(ElementType::F32) => "array<vec4<u32>>",
            Self::Quads(_) | Self::SlotsAndQuads(_) => "array<vec2<u32>>",
            Self::Ids => "array<i32>",
            Self::Words => "array<u32>",
            Self::Table(ty) => ty,
        }
    }
}

/// The declarations of one binding: the variable, and for elements its accessors
///
/// - `NAME_at(i)`: element i;
/// - `NAME_quad(i)`: four elements from i on (16 bits: i is even; quads: a multiple of four);
/// - `NAME_put(i, v)`: stores an element (not for 16 bits);
/// - `NAME_put_pair(i, v, count)`: stores the first `count` (1 or 2) of two, from an even place on;
/// - `NAME_put_quad(i, v)`: stores four, from an even place on (quads: a multiple of four).
///
/// `halves`: f16 that is only read is loaded as such.
pub(crate) fn declare(
    text: &mut String,
    index: usize,
    name: &str,
    (tensor, access, halves): (Tensor, Access, bool),
) {
    let writes = access == Access::ReadWrite;
    let halves = halves && tensor.loads_halves(access);
    let ty = if halves { tensor.wgsl_halves() } else { tensor.wgsl() };
    let access = if writes { "read_write" } else { "read" };
    put(text, format_args!("@group(0) @binding({index}) var<storage, {access}> {name}: {ty};"));
    match tensor {
        Tensor::Table(_) => {}
        Tensor::Ids => {
            put(
                text,
                format_args!("fn {name}_at(i: u32) -> i32 {{ return {name}[params.{name}_first + i]; }}"),
            );
            if writes {
                put(
                    text,
                    format_args!("fn {name}_put(i: u32, v: i32) {{ {name}[params.{name}_first + i] = v; }}"),
                );
            }
        }
        Tensor::Words => {
            put(
                text,
                format_args!("fn {name}_at(i: u32) -> u32 {{ return {name}[params.{name}_first + i]; }}"),
            );
        }
        Tensor::Elements(element) | Tensor::Quads(element) | Tensor::SlotsAndQuads(element) => {
            let at = format!("params.{name}_first + i");
            let (one, four) = match (tensor, element) {
                (Tensor::Quads(_), _) if halves => quads_halves(name, &at),
                (_, _) if halves => elements_halves(name, &at),
                (Tensor::Quads(_), ElementType::F32) => quads_f32(name, &at),
                (Tensor::SlotsAndQuads(_), ElementType::F32) => quads_of_words(name, &at),
                (Tensor::Quads(_) | Tensor::SlotsAndQuads(_), _) => quads_packed(name, &at, element),
                (_, ElementType::F32) => elements_f32(name, &at),
                (_, _) => elements_packed(name, &at, element),
            };
            put(text, format_args!("fn {name}_at(i: u32) -> f32 {{ return {one}; }}"));
            put(text, format_args!("fn {name}_quad(i: u32) -> vec4<f32> {{ return {four}; }}"));
            if let Tensor::SlotsAndQuads(_) = tensor {
                declare_slot(text, name, element);
            }
            if writes {
                declare_put(text, name, &at, (tensor, element));
            }
        }
    }
}

fn quads_f32(name: &str, at: &str) -> (String, String) {
    (format!("{name}[({at}) >> 2u][({at}) & 3u]"), format!("{name}[({at}) >> 2u]"))
}

/// Widening is exact: the same values as by way of words.
fn quads_halves(name: &str, at: &str) -> (String, String) {
    (format!("f32({name}[({at}) >> 2u][({at}) & 3u])"), format!("vec4<f32>({name}[({at}) >> 2u])"))
}

fn elements_halves(name: &str, at: &str) -> (String, String) {
    let four = format!("vec4({name}[{at}], {name}[{at} + 1u], {name}[{at} + 2u], {name}[{at} + 3u])");
    (format!("f32({name}[{at}])"), format!("vec4<f32>({four})"))
}

fn quads_of_words(name: &str, at: &str) -> (String, String) {
    let (one, four) = quads_f32(name, at);
    (format!("bitcast<f32>({one})"), format!("bitcast<vec4<f32>>({four})"))
}

/// A slot of the table before the quads: four words, or two of two.
fn declare_slot(text: &mut String, name: &str, element: ElementType) {
    let words = match element {
        ElementType::F32 => format!("{name}[e]"),
        ElementType::F16 | ElementType::Bf16 => format!("vec4({name}[2u * e], {name}[2u * e + 1u])"),
    };
    put(
        text,
        format_args!(
            "fn {name}_slot(e: u32) -> Slot {{ let w = {words}; return Slot(w.x, w.y, bitcast<f32>(w.z), w.w); }}"
        ),
    );
}

fn elements_f32(name: &str, at: &str) -> (String, String) {
    let four = format!("vec4({name}[{at}], {name}[{at} + 1u], {name}[{at} + 2u], {name}[{at} + 3u])");
    (format!("{name}[{at}]"), four)
}

/// Four 16-bit elements to two words.
fn quads_packed(name: &str, at: &str, element: ElementType) -> (String, String) {
    let (widen, words) = (widen(element), format!("{name}[({at}) >> 2u]"));
    (
        format!("{widen}({words}[(i >> 1u) & 1u])[i & 1u]"),
        format!("vec4({widen}({words}.x), {widen}({words}.y))"),
    )
}

/// Two 16-bit elements to the word.
fn elements_packed(name: &str, at: &str, element: ElementType) -> (String, String) {
    let (widen, word) = (widen(element), format!("{name}[({at}) >> 1u]"));
    let four = format!("vec4({widen}({word}), {widen}({name}[(({at}) >> 1u) + 1u]))");
    (format!("{widen}({word})[i & 1u]"), four)
}

fn declare_put(text: &mut String, name: &str, at: &str, (tensor, element): (Tensor, ElementType)) {
    if let Tensor::Quads(_) = tensor {
        return declare_put_quads(text, name, at, element);
    }
    put(
        text,
        format_args!(
            "fn {name}_put_quad(i: u32, v: vec4<f32>) {{ {name}_put_pair(i, v.xy, 2u); {name}_put_pair(i + 2u, v.zw, 2u); }}"
        ),
    );
    let body = match element {
        ElementType::F32 => {
            put(text, format_args!("fn {name}_put(i: u32, v: f32) {{ {name}[{at}] = v; }}"));
            format!("{name}[{at}] = v.x; if (count == 2u) {{ {name}[{at} + 1u] = v.y; }}")
        }
        ElementType::F16 | ElementType::Bf16 => {
            let narrow = if element == ElementType::F16 { "narrow_f16" } else { "narrow_bf16" };
            // The upper half of a row's last word is padding, which stays as it is.
            let word = format!("{name}[({at}) >> 1u]");
            let two = format!("{word} = {narrow}(v.x) | ({narrow}(v.y) << 16u);");
            let one = format!("{word} = {narrow}(v.x) | ({word} & 0xffff0000u);");
            format!("if (count == 2u) {{ {two} }} else {{ {one} }}")
        }
    };
    put(text, format_args!("fn {name}_put_pair(i: u32, v: vec2<f32>, count: u32) {{ {body} }}"));
}

/// As [`declare_put`], into vectors of four.
fn declare_put_quads(text: &mut String, name: &str, at: &str, element: ElementType) {
    let quad = format!("{name}[({at}) >> 2u]");
    let (pair, four) = match element {
        ElementType::F32 => {
            put(text, format_args!("fn {name}_put(i: u32, v: f32) {{ {quad}[({at}) & 3u] = v; }}"));
            let pair = format!("{name}_put(i, v.x); if (count == 2u) {{ {name}_put(i + 1u, v.y); }}");
            (pair, "v".to_string())
        }
        ElementType::F16 | ElementType::Bf16 => {
            let narrow = if element == ElementType::F16 { "narrow_f16" } else { "narrow_bf16" };
            let word = format!("{quad}[(({at}) >> 1u) & 1u]");
            let two = format!("{word} = {narrow}(v.x) | ({narrow}(v.y) << 16u);");
            let one = format!("{word} = {narrow}(v.x) | ({word} & 0xffff0000u);");
            let words = ["x", "y", "z", "w"].map(|c| format!("{narrow}(v.{c})"));
            let four =
                format!("vec2({} | ({} << 16u), {} | ({} << 16u))", words[0], words[1], words[2], words[3]);
            (format!("if (count == 2u) {{ {two} }} else {{ {one} }}"), four)
        }
    };
    put(text, format_args!("fn {name}_put_pair(i: u32, v: vec2<f32>, count: u32) {{ {pair} }}"));
    put(text, format_args!("fn {name}_put_quad(i: u32, v: vec4<f32>) {{ {quad} = {four}; }}"));
}

fn widen(element: ElementType) -> &'static str {
    if element == ElementType::F16 { "unpack2x16float" } else { "widen_bf16" }
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
