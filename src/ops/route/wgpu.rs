//! Route on WebGPU.
//!
//! Scores never leave a workgroup's memory: the only bindings that a kernel may write are `topk_ids`, `topk_weights` (8 bytes
//! a column and token, each written once) and the status word.

use super::{Allow, EPSILON, MAX_TOP_K, OP, Rule, Select, Sizes, Weighting};
use crate::adapter::LinearRouter;
use crate::device::wgpu::{Access, Binding, Launch, Tuning, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{Form, Grid, NOTHING_BEHIND, ROWS_IN_ORDER, check_packed, sums, word};

/// Tokens that a workgroup of the form for many takes.
const TILE_TOKENS: usize = 16;
/// Largest `top_k` of that form, whose lists lie beside its tiles: 13.8 of 16 KiB of workgroup memory at most.
const MANY_TOP_K: usize = 32;
/// Fewest rows of the router that its tiles pay for.
const MANY_EXPERTS: usize = 32;

/// What the other texts need of a choice without a mask.
const EVERY: &str = "fn list_of(t: u32) -> u32 { return 0u; }
fn allows(list: u32, e: u32) -> bool { return true; }
";
const GIVEN: &str = "fn bias_of(e: u32) -> f32 { return bias_at(e); }
fn threshold_given() -> f32 { return bitcast<f32>(params.threshold); }
";
const SCORE: &str = include_str!("../../../shaders/route_score.wgsl");
const LIST: &str = include_str!("../../../shaders/route_list.wgsl");
const TOKEN: &str = include_str!("../../../shaders/route_token.wgsl");

/// One token of a plain choice by a workgroup of 64 lanes: behind `rows.wgsl`, with [`plain_constants`].
pub(crate) const PLAIN_TOKEN: [&str; 4] = [EVERY, SCORE, LIST, TOKEN];

/// Kernels' names of weightings and thresholds.
const NAMES: [(&str, u32); 11] = [
    ("SOFTMAX_SELECTED", Weighting::SoftmaxSelected as u32),
    ("SOFTMAX_ALL", Weighting::SoftmaxAll as u32),
    ("SOFTMAX_ALL_RENORMALISED", Weighting::SoftmaxAllRenormalised as u32),
    ("SOFTMAX_TWICE", Weighting::SoftmaxTwice as u32),
    ("ABOVE_THRESHOLD", Weighting::AboveThreshold as u32),
    ("SIGMOID", Weighting::Sigmoid as u32),
    ("UNIFORM", Weighting::Uniform as u32),
    ("SCORE", Weighting::Score as u32),
    ("NO_THRESHOLD", NO_THRESHOLD),
    ("FIXED_THRESHOLD", FIXED_THRESHOLD),
    ("LEARNED_THRESHOLD", LEARNED_THRESHOLD),
];
const NO_THRESHOLD: u32 = 0;
const FIXED_THRESHOLD: u32 = 1;
const LEARNED_THRESHOLD: u32 = 2;

/// What specialises the texts: the choice, and how many lists a workgroup keeps with how many lanes each.
fn constants(
    rule: &Rule,
    router: &LinearRouter,
    (lists, spread): (usize, usize),
) -> Vec<(&'static str, u32)> {
    use Weighting::{AboveThreshold, SoftmaxAll, SoftmaxAllRenormalised, SoftmaxSelected, SoftmaxTwice};
    let shares = [SoftmaxAll, SoftmaxTwice, AboveThreshold].contains(&rule.weighting);
    let normalised = [SoftmaxSelected, SoftmaxAllRenormalised, SoftmaxTwice, AboveThreshold];
    let threshold = match rule.select {
        Select::TopK => NO_THRESHOLD,
        Select::Threshold(_) => FIXED_THRESHOLD,
        Select::LearnedThreshold(_) => LEARNED_THRESHOLD,
    };
    let own = [
        ("TOP_K", rule.top_k as u32),
        ("SHARED", rule.shared as u32),
        ("WEIGHTING", rule.weighting as u32),
        ("THRESHOLD", threshold),
        ("SHARES", u32::from(shares || threshold != NO_THRESHOLD)),
        ("NORMALISED", u32::from(normalised.contains(&rule.weighting))),
        ("STANDARDISED", u32::from(router.is_standardised())),
        ("ABSOLUTE", u32::from(router.is_absolute())),
        ("EPSILON_BITS", EPSILON.to_bits()),
        ("LISTS", lists as u32),
        ("SPREAD", spread as u32),
    ];
    [&NAMES[..], &own].concat()
}

/// The constants of [`PLAIN_TOKEN`].
pub(crate) fn plain_constants(rule: &Rule, router: &LinearRouter) -> Vec<(&'static str, u32)> {
    constants(rule, router, (1, 64))
}

/// The launch: a workgroup per token reads the router once each; many tokens share it by sixteens, in tiles of 64 or 128 of
/// its rows.
pub fn grid(sizes: &Sizes, tuning: &Tuning, batch_invariant: bool) -> Grid {
    let Sizes { tokens, rule, .. } = *sizes;
    let rows = sizes.experts.saturating_add(rule.select.rows());
    let many =
        rule.top_k <= MANY_TOP_K && rows >= MANY_EXPERTS && (batch_invariant || tokens >= tuning.route_many);
    let tokens = if rule.width() == 0 { 0 } else { tokens };
    // Tiles of 128 where they hold no more rows that are not there.
    let columns = if rows.div_ceil(64) % 2 == 0 { 128 } else { 64 };
    let (form, columns, groups) = match many {
        true => (Form::Many, columns, tokens.div_ceil(TILE_TOKENS)),
        false => (Form::Few, 8, tokens),
    };
    Grid { form, columns, blocks: 1, groups }
}

/// A linear router's parameters in device memory.
#[derive(Debug)]
pub struct WgpuRouter {
    router: LinearRouter,
    /// The weight, then the bias.
    buffer: wgpu::Buffer,
}

impl WgpuRouter {
    /// Uploads the parameters.
    pub fn new(wgpu: &Wgpu, router: LinearRouter) -> Result<Self> {
        let bias = router.bias().map_or(vec![0.0; router.experts()], <[f32]>::to_vec);
        let buffer = wgpu.upload(&[router.weight(), &bias].concat())?;
        Ok(Self { router, buffer })
    }

    /// Weight and bias in one.
    pub(crate) fn all(&self) -> Result<View<'_, f32>> {
        View::new(&self.buffer, 0, self.router.weight().len() + self.router.experts())
    }

    /// The parameters in host memory.
    pub fn linear(&self) -> &LinearRouter {
        &self.router
    }
}

impl Wgpu {
    /// See the [module](super). Records into `encoder`; a score that is not finite sets the status word, as does a variance
    /// beyond f32. Offsets and lists may hold anything: a token that no request owns takes nothing.
    #[expect(clippy::too_many_arguments, reason = "sizes, inputs, outputs: the order on every device")]
    pub fn route<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        router: &WgpuRouter,
        x: View<X>,
        allow: Option<Allow<View<u32>>>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
    ) -> Result<()> {
        sizes.check(&router.router, x.len(), topk_ids.len(), topk_weights.len())?;
        let requests = allow.map_or(Ok(0), |allow| allow.requests(sizes.experts, View::len))?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        let rule = sizes.rule;
        if rule.top_k > MAX_TOP_K {
            return Err(Error::argument(OP, "top_k", format!("at most {MAX_TOP_K} on WebGPU"), rule.top_k));
        }
        let threshold = match rule.select {
            Select::TopK => 0.0,
            Select::Threshold(t) | Select::LearnedThreshold(t) => t,
        };
        let len = router.router.weight().len();
        let mut bindings = vec![
            Binding::rows("x", x, sizes.x_stride),
            Binding::rows("w", View::<f32>::new(&router.buffer, 0, len)?, sizes.in_features),
            Binding::read("bias", View::<f32>::new(&router.buffer, len, router.router.experts())?),
            Binding::ids("topk_ids", Access::ReadWrite, topk_ids),
            Binding::write("topk_weights", topk_weights),
            Binding::status(self),
        ];
        let mask = match allow {
            Some(Allow { offsets, lists }) => {
                word(OP, "allow.lists", lists.len())?;
                bindings.extend([Binding::words("offsets", offsets), Binding::words("lists", lists)]);
                include_str!("../../../shaders/route_masked.wgsl")
            }
            None => EVERY,
        };
        let Grid { form, columns, groups, .. } = grid(sizes, self.tuning(), self.is_batch_invariant());
        // The form for many has its own sums.
        let [place, sum] = if form == Form::Few { sums(self.tuning()) } else { [""; 2] };
        let path = Path::new(form, columns, self.tuning().wide_tiles);
        let launch = Launch {
            op: OP,
            entry: path.entry,
            body: &[
                &[place, sum, GIVEN, mask, SCORE, LIST, include_str!("../../../shaders/route_put.wgsl")],
                path.body,
            ]
            .concat(),
            constants: &[constants(&rule, &router.router, path.lists), path.tile].concat(),
            params: &[
                ("tokens", word(OP, "tokens", sizes.tokens)?),
                ("in_features", word(OP, "in_features", sizes.in_features)?),
                ("experts", word(OP, "experts", sizes.experts)?),
                ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
                ("threshold", threshold.to_bits()),
                ("requests", word(OP, "allow.offsets", requests)?),
            ],
            bindings: &bindings,
            groups: word(OP, "tokens", groups)?,
        };
        self.launch(encoder, &launch)
    }
}

/// What a form adds to the texts and constants.
struct Path {
    entry: &'static str,
    body: &'static [&'static str],
    /// Lists of a workgroup, and lanes that each has.
    lists: (usize, usize),
    tile: Vec<(&'static str, u32)>,
}

impl Path {
    fn new(form: Form, columns: usize, wide: bool) -> Self {
        match form {
            Form::Few => Self {
                entry: "route_few",
                body: &[
                    include_str!("../../../shaders/rows.wgsl"),
                    TOKEN,
                    include_str!("../../../shaders/route.wgsl"),
                ],
                lists: (1, 64),
                tile: Vec::new(),
            },
            Form::Many => {
                // A thread has 8 tokens and 4 rows of the router, or 8 and 8.
                let threads = TILE_TOKENS / 8 * columns / if wide { 8 } else { 4 };
                Self {
                    entry: "route_many",
                    body: &[
                        NOTHING_BEHIND,
                        ROWS_IN_ORDER,
                        include_str!("../../../shaders/tile.wgsl"),
                        include_str!("../../../shaders/route_many.wgsl"),
                    ],
                    lists: (TILE_TOKENS, threads / TILE_TOKENS),
                    tile: vec![
                        ("TILE_M", TILE_TOKENS as u32),
                        ("TILE_N", columns as u32),
                        ("WIDE", u32::from(wide)),
                    ],
                }
            }
        }
    }
}
