//! The seven linears of a llama block, and how each file format spells them.

use super::config::Config;

/// One linear of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of the attention.
    O,
    /// Gate of the feed-forward part.
    Gate,
    /// Up.
    Up,
    /// Down.
    Down,
}

impl Projection {
    /// All of them, in the order in which a block runs them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in adapters and routers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The name in a GGUF file.
    pub const fn gguf(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::O => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    /// `model.layers.24.mlp.gate_proj` is the gate of layer 24.
    pub fn parse(module: &str) -> Option<(usize, Self)> {
        let mut parts = module.strip_prefix("model.layers.")?.split('.');
        let (layer, part, name) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        let projection = Self::ALL.into_iter().find(|p| p.name() == name && p.part() == part)?;
        parts.next().is_none().then_some((layer, projection))
    }

    /// The heads of a linear whose outputs are rotated.
    pub const fn rotated_heads(self, config: &Config) -> Option<usize> {
        match self {
            Self::Q => Some(config.heads),
            Self::K => Some(config.kv_heads),
            _ => None,
        }
    }

    const fn part(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }
}

/// Reorders the rows of q or k from the two halves of adapters to the interleaved pairs of GGUF files.
///
/// Row `2 i + j` of a head is row `j * half + i` there.
pub fn interleave_rows(rows: &[f32], width: usize, heads: usize) -> Vec<f32> {
    let head = rows.len() / width / heads;
    let mut out = Vec::with_capacity(rows.len());
    for h in 0..heads {
        for r in 0..head {
            let from = h * head + (r % 2) * (head / 2) + r / 2;
            out.extend_from_slice(&rows[from * width..(from + 1) * width]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_by_their_path() {
        assert_eq!(Projection::parse("model.layers.24.mlp.gate_proj"), Some((24, Projection::Gate)));
        assert_eq!(Projection::parse("model.layers.0.self_attn.o_proj"), Some((0, Projection::O)));
        for wrong in [
            "model.layers.0.mlp.q_proj",
            "model.layers.x.mlp.up_proj",
            "lm_head",
            "model.layers.0.mlp.up_proj.x",
        ] {
            assert_eq!(Projection::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn halves_become_pairs() {
        let rows: Vec<f32> = (0..8).map(|v| v as f32).collect();
        assert_eq!(interleave_rows(&rows, 1, 2), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(interleave_rows(&rows, 2, 1), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    }
}
