//! Tokens: words, strings and single signs, each with its line.

use super::ParseError;

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// Line, from 1.
    pub line: u32,
    /// Its text; a string keeps its quotes.
    pub text: &'a str,
}

fn word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Splits text into tokens; comments are left out, and so are `.loc` and `.file` lines.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut out = Vec::with_capacity(text.len() / 4);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            _ if byte.is_ascii_whitespace() => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => at = line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").ok_or_else(|| ParseError::new(line, "comment has no end"))?;
                line += newlines(&bytes[at..at + end]);
                at += end + 2;
            }
            b'"' => {
                let end =
                    text[at + 1..].find('"').ok_or_else(|| ParseError::new(line, "string has no end"))?;
                out.push(Token { line, text: &text[at..at + end + 2] });
                line += newlines(&bytes[at..at + end + 2]);
                at += end + 2;
            }
            _ if word_byte(byte) => {
                // Directives may stand together: `.reg.b32`.
                let end = if byte == b'.' { directive_end(bytes, at) } else { word_end(bytes, at) };
                let word = &text[at..end];
                at = end;
                if word == ".loc" || word == ".file" {
                    at = line_end(bytes, at);
                } else {
                    out.push(Token { line, text: word });
                }
            }
            _ if byte.is_ascii() => {
                out.push(Token { line, text: &text[at..at + 1] });
                at += 1;
            }
            _ => return Err(ParseError::new(line, "text that is not ASCII")),
        }
    }
    Ok(out)
}

fn newlines(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u32
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |found| at + found)
}

fn directive_end(bytes: &[u8], at: usize) -> usize {
    let name = |byte: &&u8| word_byte(**byte) && **byte != b'.';
    at + 1 + bytes[at + 1..].iter().take_while(name).count()
}

/// The end of a word; `::` stands inside one (`.L1::evict_last`), a label's `:` does not.
fn word_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        while at < bytes.len() && word_byte(bytes[at]) {
            at += 1;
        }
        let inside = bytes.get(at) == Some(&b':')
            && bytes.get(at + 1) == Some(&b':')
            && bytes.get(at + 2).is_some_and(|&byte| word_byte(byte));
        if !inside {
            return at;
        }
        at += 2;
    }
}
