//! One operation, one file, in the order in which data flows. Each file reads: formula and shapes, sizes and
//! checks, the definition on plain slices (the oracle; it stays slow), the launch as a pure function, devices.

pub mod attend;
pub mod base;
pub mod expand;
pub mod fused;
pub mod grouped;
pub mod plan;
pub mod route;
pub mod shrink;

use crate::error::{Error, Result};

/// What the chosen experts' products become, for a token t with routes n, weights w, scalings s (operators,
/// section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// `y_t = sum_n w_n s_n B_n (A_n x_t)`: the common case.
    Sum,
    /// `z_n = s_n B_n (A_n x_t)`: a row for every route, without its weight.
    PerRoute,
    /// `h_t = sum_n w_n A_n x_t`, `y_t = sum_n w_n s_n B_n h_t`: fusion of the experts before the product. All
    /// experts of a token have one rank.
    RankSum,
}

impl Output {
    /// All of them, in the order of the tests' tables.
    pub const ALL: [Self; 3] = [Self::Sum, Self::PerRoute, Self::RankSum];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::PerRoute => "per_route",
            Self::RankSum => "rank_sum",
        }
    }

    /// Rows of h: one per token for `RankSum`, one per route otherwise.
    pub const fn h_rows(self, tokens: usize, top_k: usize) -> usize {
        match self {
            Self::RankSum => tokens,
            Self::Sum | Self::PerRoute => tokens.saturating_mul(top_k),
        }
    }

    /// Rows of the result: one per route for `PerRoute`, one per token otherwise.
    pub const fn y_rows(self, tokens: usize, top_k: usize) -> usize {
        match self {
            Self::PerRoute => tokens.saturating_mul(top_k),
            Self::Sum | Self::RankSum => tokens,
        }
    }
}

/// One expert of a definition, on plain slices as PEFT stores them.
#[derive(Debug, Clone, Copy)]
pub struct Expert<'a, A> {
    /// Rows of `lora_a`, columns of `lora_b`; 0 where the slot is empty.
    pub rank: usize,
    /// Factor of the product B A.
    pub scaling: f32,
    /// `[rank, in_features]`.
    pub lora_a: &'a [A],
    /// `[out_features, rank]`.
    pub lora_b: &'a [A],
}

/// Elements that `rows` rows of `width` take when they start every `stride` elements: the last row needs no
/// padding behind it.
pub(crate) const fn span(rows: usize, width: usize, stride: usize) -> usize {
    if rows == 0 || width == 0 { 0 } else { (rows - 1).saturating_mul(stride).saturating_add(width) }
}

/// Row t of rows that [`check_rows`] accepted; rows of no elements need no memory, wherever they would begin.
pub(crate) fn row<T>(rows: &[T], t: usize, width: usize, stride: usize) -> &[T] {
    if width == 0 { &[] } else { &rows[t * stride..][..width] }
}

/// The experts of a definition are the plan's, each with all of its factor.
pub(crate) fn check_experts<A>(
    op: &'static str,
    plan: &plan::Plan,
    experts: &[Expert<A>],
    width: usize,
    factor_len: impl Fn(&Expert<A>) -> usize,
) -> Result<()> {
    check_equal(op, "experts", plan.sizes().experts, experts.len())?;
    for (e, expert) in experts.iter().enumerate() {
        check_len(op, &format!("experts[{e}]"), expert.rank.saturating_mul(width), factor_len(expert))?;
    }
    Ok(())
}

/// A slice holds exactly `expected` elements.
pub(crate) fn check_len(op: &'static str, argument: &str, expected: usize, got: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::argument(op, argument, format!("{expected} elements"), got))
}

/// A slice holds the rows that the sizes describe; longer is fine.
pub(crate) fn check_rows(
    op: &'static str,
    argument: &str,
    (rows, width, stride): (usize, usize, usize),
    got: usize,
) -> Result<()> {
    if stride < width {
        return Err(Error::argument(
            op,
            format!("{argument}_stride"),
            format!("at least the row's {width} elements"),
            stride,
        ));
    }
    let needed = span(rows, width, stride);
    if got < needed {
        return Err(Error::argument(
            op,
            argument,
            format!("at least {needed} elements ({rows} rows of {width}, stride {stride})"),
            got,
        ));
    }
    Ok(())
}

/// A named size equals what another argument says it is.
pub(crate) fn check_equal(op: &'static str, argument: &str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::argument(op, argument, expected, got)) }
}

/// tokens x top_k fits the 32-bit route numbers of every device.
pub(crate) fn check_routes(op: &'static str, tokens: usize, top_k: usize) -> Result<()> {
    match tokens.checked_mul(top_k) {
        Some(routes) if routes < i32::MAX as usize => Ok(()),
        _ => Err(Error::argument(
            op,
            "tokens * top_k",
            "fewer than 2^31 routes",
            format!("{tokens} * {top_k}"),
        )),
    }
}

/// Which path a GPU takes. Within one form a token's bits never depend on the rest of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Few rows: a matrix-vector shape, one workgroup per row.
    Few,
    /// Many rows: tiles of rows in registers.
    Many,
}

/// The launch of a kernel, decided from sizes and limits alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// The path.
    pub form: Form,
    /// Columns (ranks, or columns of y) that one workgroup takes.
    pub columns: usize,
    /// Workgroups along the columns.
    pub blocks: usize,
    /// Workgroups.
    pub groups: usize,
}

/// The shape of `tile.wgsl`: rows of w in a tile, and whether a thread takes eight of them or four.
#[cfg(feature = "wgpu")]
pub(crate) fn tile_constants(columns: usize, wide: bool) -> [(&'static str, u32); 3] {
    [("TILE_M", crate::device::wgpu::TILE_ROWS as u32), ("TILE_N", columns as u32), ("WIDE", u32::from(wide))]
}

/// What a kernel of `tile.wgsl` adds behind the inner dimension where it adds nothing.
#[cfg(feature = "wgpu")]
pub(crate) const NOTHING_BEHIND: &str = "fn behind(thread: u32, s: ptr<function, Sums>) {}\n";

/// Rows of w one after another, as most kernels of `tile.wgsl` take them.
#[cfg(feature = "wgpu")]
pub(crate) const ROWS_IN_ORDER: &str = "fn w_row(w0: u32, w_stride: u32, w_count: u32, n: u32) -> u32 {
    return w0 + min(n, w_count - 1u) * w_stride;
}
";

/// How lanes of a workgroup add up, in front of a kernel with such sums.
#[cfg(feature = "wgpu")]
pub(crate) fn sums(tuning: &crate::device::wgpu::Tuning) -> [&'static str; 2] {
    match tuning.sums_in_subgroups() {
        true => [LANES[0], include_str!("../../shaders/sum.wgsl")],
        false => [include_str!("../../shaders/lane.wgsl"), include_str!("../../shaders/tree.wgsl")],
    }
}

/// The texts of a product on lanes, in front of the kernel's own.
#[cfg(feature = "wgpu")]
pub(crate) const LANES: [&str; 2] =
    [include_str!("../../shaders/subgroup.wgsl"), include_str!("../../shaders/lanes.wgsl")];

/// What those of them that read h and B have beside it.
#[cfg(feature = "wgpu")]
pub(crate) const LANES_RANKS: &str = include_str!("../../shaders/lanes_ranks.wgsl");

/// And those that add experts to an y of f32.
#[cfg(feature = "wgpu")]
pub(crate) const LANES_ROUTES: &str = include_str!("../../shaders/lanes_routes.wgsl");

/// How sums of a product on lanes get into an y of f32.
#[cfg(feature = "wgpu")]
pub(crate) const LANES_PUT: &str = include_str!("../../shaders/lanes_put.wgsl");

/// Chunks of tokens of a workgroup of [`LANES_ROUTES`]: 256 tokens, so that B's rows serve many routes.
#[cfg(feature = "wgpu")]
pub(crate) const LANES_CHUNKS: usize = 16;

/// Where rows of x are the shared ones, and rows of w the lanes' own.
#[cfg(feature = "wgpu")]
pub(crate) const ROWS_SHARED: &str = include_str!("../../shaders/lanes_rows_shared.wgsl");

/// Rows that the lanes of a workgroup share.
#[cfg(feature = "wgpu")]
pub(crate) const SHARED_ROWS: usize = 16;

/// A size as a kernel reads it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn word(op: &'static str, argument: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::argument(op, argument, "below 2^32", value))
}

/// Where the number of live tokens lies: one word, or nowhere when all are live.
#[cfg(feature = "cuda")]
pub(crate) fn live_tokens_address(
    op: &'static str,
    live_tokens: Option<&crate::device::cuda::View<u32>>,
) -> Result<u64> {
    let Some(word) = live_tokens else { return Ok(0) };
    check_len(op, "live_tokens", 1, word.len())?;
    Ok(word.address())
}

/// A view that kernels index in 32 bits, whose packed rows start at whole words.
#[cfg(feature = "wgpu")]
pub(crate) fn check_packed<E: crate::element::Element>(
    op: &'static str,
    argument: &str,
    stride: usize,
    len: usize,
) -> Result<()> {
    word(op, argument, len)?;
    if size_of::<E>() == 2 && !stride.is_multiple_of(2) {
        let expected = format!("an even stride for packed {} rows", E::TYPE);
        return Err(Error::argument(op, format!("{argument}_stride"), expected, stride));
    }
    Ok(())
}
