//! Which form of the fused layer, and why: a pure function of the problem and of the device's limits.
//!
//! Every form is a few launches, each of which moves bytes and multiplies. A launch takes `launch_s` plus the larger of
//! bytes / bandwidth and multiply-adds / rate; the form with the smallest sum is chosen, the earlier of [`Form::ALL`] where
//! they are equal. Bytes are the least that global memory must give: each weight, each active adapter and each activation
//! once a launch. Which experts are active is not known before routing: the expected number for uniform routing stands in
//! for it, `E (1 - (1 - 1/E)^n)` of E after n draws.

use super::Form;
use crate::element::ElementType;
use crate::ops::Output;
use std::fmt;

/// What the layer is asked to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Problem {
    /// Rows of x.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Elements of x, weight and y.
    pub x: ElementType,
    /// Elements of the adapters.
    pub adapters: ElementType,
    /// Adapters in the pool.
    pub live: usize,
    /// Ranks of all of them.
    pub ranks: usize,
    /// Rows of the pool up to the last in use: what the dense form multiplies.
    pub used_rows: usize,
    /// Scores that the layer's own router computes; 0 where ids are given.
    pub router_experts: usize,
    /// Whether the output has slices.
    pub packed: bool,
    /// What the experts' products become.
    pub output: Output,
}

/// What the device can do, and which forms it has for the problem.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes a second of global memory.
    pub bandwidth: f64,
    /// Multiply-adds a second in the element type of x.
    pub rate: f64,
    /// Seconds that a launch costs beside its work.
    pub launch_s: f64,
    /// Tokens that share the extension's steps: 1 where every token runs over its own experts only.
    pub tile_tokens: usize,
    /// Ranks of one step of the extension.
    pub rank_step: usize,
    /// Most tokens of [`Form::Few`]; 0 where the device has no such form.
    pub few_tokens: usize,
    /// Launches of [`Form::Few`].
    pub few_launches: usize,
    /// Launches of a plan, which sparse and beside need.
    pub plan_launches: usize,
    /// Most rows of A in the dense form's first product; 0 where the device has no dense form.
    pub dense_rows: usize,
    /// Why the device does not take the dense form for the problem, where it does not.
    pub dense_refused: Option<&'static str>,
    /// Why the dense form is taken only where it is demanded, where it is so.
    pub dense_on_demand: Option<&'static str>,
    /// Most scores of a router in the dense form's first product; beyond it routing is a launch of its own.
    pub dense_experts: usize,
    /// Whether the device has the sparse form.
    pub sparse: bool,
    /// One form for every number of tokens.
    pub batch_invariant: bool,
}

/// What a form costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Launches of the layer itself.
    pub launches: usize,
    /// Launches of routing and plan before it.
    pub setup_launches: usize,
    /// Least bytes of global memory of all launches, router and plan aside.
    pub bytes: f64,
    /// Multiply-adds of all launches, router aside.
    pub multiply_adds: f64,
    /// The model's time.
    pub seconds: f64,
}

/// A form, and what every form would have cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The chosen one.
    pub form: Form,
    /// Whether the caller demanded it.
    pub forced: bool,
    /// Every form's cost, or why it is not offered.
    pub costs: Vec<(Form, Result<Cost, String>)>,
}

/// Multiply-adds and bytes of one launch.
#[derive(Debug, Clone, Copy, Default)]
struct Work {
    bytes: f64,
    multiply_adds: f64,
}

impl Problem {
    /// Expected number of the live adapters that `draws` routes name.
    fn active(&self, draws: f64) -> f64 {
        let live = self.live as f64;
        if self.live == 0 { 0.0 } else { live * (1.0 - (1.0 - 1.0 / live).powf(draws)) }
    }

    fn mean_rank(&self) -> f64 {
        if self.live == 0 { 0.0 } else { self.ranks as f64 / self.live as f64 }
    }

    fn routes(&self) -> f64 {
        if self.live == 0 { 0.0 } else { self.tokens as f64 * self.top_k as f64 }
    }

    /// x and weight read, y written.
    fn base(&self) -> Work {
        let (t, i, o) = (self.tokens as f64, self.in_features as f64, self.out_features as f64);
        Work { bytes: (t * i + i * o + t * o) * self.x.bytes() as f64, multiply_adds: t * i * o }
    }

    /// x and the active A read, h written.
    fn shrink(&self) -> Work {
        let (i, rank) = (self.in_features as f64, self.mean_rank());
        let x = self.tokens as f64 * i * self.x.bytes() as f64;
        let a = self.active(self.routes()) * rank * i * self.adapters.bytes() as f64;
        Work { bytes: x + a + self.h_bytes(), multiply_adds: self.routes() * rank * i }
    }

    fn h_bytes(&self) -> f64 {
        let rows = if self.output == Output::RankSum { self.tokens as f64 } else { self.routes() };
        4.0 * rows * self.mean_rank()
    }

    /// h and the active B, without y.
    fn expand(&self) -> Work {
        let (o, rank) = (self.out_features as f64, self.mean_rank());
        let b = self.active(self.routes()) * rank * o * self.adapters.bytes() as f64;
        Work { bytes: b + self.h_bytes(), multiply_adds: self.routes() * rank * o }
    }

    /// Multiply-adds of the sparse form's extension: a tile runs over whole steps of every expert that it uses.
    fn extension(&self, limits: &Limits) -> f64 {
        let (rank, step) = (self.mean_rank(), limits.rank_step.max(1) as f64);
        if limits.tile_tokens <= 1 || self.live == 0 {
            return self.routes() * rank * self.out_features as f64;
        }
        let rows = self.tokens.min(limits.tile_tokens);
        let tiles = self.tokens.div_ceil(limits.tile_tokens) as f64;
        let steps = self.active(rows as f64 * self.top_k as f64) * (rank / step).ceil();
        tiles * limits.tile_tokens as f64 * steps * step * self.out_features as f64
    }

    /// The launches of a form and its routing and plan launches, or why it is not offered.
    fn launches(&self, form: Form, limits: &Limits) -> Result<(Vec<Work>, usize), String> {
        let (base, shrink, expand) = (self.base(), self.shrink(), self.expand());
        let routing = usize::from(self.router_experts > 0);
        let planned = routing + limits.plan_launches;
        if form == Form::Dense
            && let Some(why) = limits.dense_refused
        {
            return Err(why.into());
        }
        match form {
            Form::Beside if self.packed => Err("a packed output has no separate expand".into()),
            Form::Beside => {
                let y = 2.0 * self.tokens as f64 * self.out_features as f64 * self.x.bytes() as f64;
                Ok((vec![base, shrink, Work { bytes: expand.bytes + y, ..expand }], planned))
            }
            Form::Sparse if self.packed && self.output == Output::RankSum => {
                Err("rank_sum of a packed output".into())
            }
            Form::Sparse if !limits.sparse => Err("the device has no sparse form".into()),
            Form::Sparse => {
                let multiply_adds = base.multiply_adds + self.extension(limits);
                Ok((vec![shrink, Work { bytes: base.bytes + expand.bytes, multiply_adds }], planned))
            }
            // Rows of A lie by adapter: of each slice's columns most would be multiplied with other slices' ranks.
            Form::Dense if self.packed => {
                Err("a packed output: z has all slices' ranks side by side; sparse takes each slice's own"
                    .into())
            }
            Form::Dense if self.output != Output::Sum => Err(format!("the output is {}", self.output.name())),
            Form::Dense if limits.batch_invariant => Err("batch-invariant: one form for every batch".into()),
            Form::Dense if limits.dense_rows == 0 => Err("the device has no dense form".into()),
            Form::Dense if self.used_rows > limits.dense_rows => {
                Err(format!("{} rows of A, at most {}", self.used_rows, limits.dense_rows))
            }
            Form::Dense => {
                let (t, rows) = (self.tokens as f64, self.used_rows as f64);
                let own = self.router_experts <= limits.dense_experts;
                let scores = if own { self.router_experts as f64 } else { 0.0 };
                let columns = rows + scores;
                let (x, z) =
                    (t * self.in_features as f64 * self.x.bytes() as f64, t * rows * self.x.bytes() as f64);
                let a = self.in_features as f64 * (rows * self.adapters.bytes() as f64 + scores * 4.0);
                let gate = Work { bytes: x + a + z, multiply_adds: t * columns * self.in_features as f64 };
                let b = rows * self.out_features as f64 * self.adapters.bytes() as f64;
                let multiply_adds = base.multiply_adds + t * rows * self.out_features as f64;
                let product = Work { bytes: base.bytes + z + b, multiply_adds };
                Ok((vec![gate, product], if own { 0 } else { routing }))
            }
            Form::Few if self.output != Output::Sum => Err(format!("the output is {}", self.output.name())),
            Form::Few if limits.batch_invariant => Err("batch-invariant: one form for every batch".into()),
            Form::Few if limits.few_tokens == 0 => Err("the device has no form for a few tokens".into()),
            Form::Few if self.tokens > limits.few_tokens => {
                Err(format!("{} tokens, at most {}", self.tokens, limits.few_tokens))
            }
            Form::Few => {
                // The shrink hides behind the weights: one span of bytes and operations, whatever the launches.
                let all = Work {
                    bytes: base.bytes + shrink.bytes + expand.bytes,
                    multiply_adds: base.multiply_adds + shrink.multiply_adds + expand.multiply_adds,
                };
                let rest = vec![Work::default(); limits.few_launches.saturating_sub(1)];
                Ok(([vec![all], rest].concat(), routing))
            }
        }
    }

    fn cost(&self, form: Form, limits: &Limits) -> Result<Cost, String> {
        let (work, setup_launches) = self.launches(form, limits)?;
        let time =
            |w: &Work| (w.bytes / limits.bandwidth).max(w.multiply_adds / limits.rate) + limits.launch_s;
        Ok(Cost {
            launches: work.len(),
            setup_launches,
            bytes: work.iter().map(|w| w.bytes).sum(),
            multiply_adds: work.iter().map(|w| w.multiply_adds).sum(),
            seconds: work.iter().map(time).sum::<f64>() + setup_launches as f64 * limits.launch_s,
        })
    }
}

/// The cheapest form that the device offers, or the demanded one.
///
/// # Errors
/// A demanded form that is not offered.
pub fn choose(problem: &Problem, limits: &Limits, demanded: Option<Form>) -> crate::Result<Choice> {
    let cost = |form: Form| match limits.dense_on_demand {
        Some(why) if form == Form::Dense && demanded != Some(form) => Err(format!("only on demand: {why}")),
        _ => problem.cost(form, limits),
    };
    let costs = Form::ALL.map(|form| (form, cost(form))).to_vec();
    let offered = || costs.iter().filter_map(|(form, cost)| Some((*form, cost.as_ref().ok()?.seconds)));
    let form = match demanded {
        // A number of tokens must not change the form: the first of these that there is, whatever it costs.
        None if limits.batch_invariant => {
            let fixed = [Form::Sparse, Form::Beside];
            fixed.into_iter().find(|form| offered().any(|(offer, _)| offer == *form))
        }
        None => offered().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(form, _)| form),
        Some(form) => offered().map(|(offer, _)| offer).find(|offer| *offer == form),
    };
    let Some(form) = form else {
        let why = |(form, cost): &(Form, Result<Cost, String>)| {
            cost.as_ref().err().map(|why| format!("{}: {why}", form.name()))
        };
        let got: Vec<String> = costs.iter().filter_map(why).collect();
        let expected = "a form that the device offers for the problem";
        return Err(crate::Error::argument("fused", "form", expected, got.join("; ")));
    };
    Ok(Choice { form, forced: demanded.is_some(), costs })
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}{}", self.form.name(), if self.forced { ", as demanded" } else { "" })?;
        for (form, cost) in &self.costs {
            match cost {
                Ok(c) => writeln!(
                    f,
                    "  {:<6} {:>10.1} us: {} launches (+ {} of routing and plan), {:.2} MB, {:.2} M multiply-adds",
                    form.name(),
                    c.seconds * 1e6,
                    c.launches,
                    c.setup_launches,
                    c.bytes / 1e6,
                    c.multiply_adds / 1e6
                )?,
                Err(why) => writeln!(f, "  {:<6} not offered: {why}", form.name())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem {
            tokens: 256,
            top_k: 2,
            in_features: 4096,
            out_features: 4096,
            x: ElementType::Bf16,
            adapters: ElementType::Bf16,
            live: 8,
            ranks: 128,
            used_rows: 128,
            router_experts: 8,
            packed: false,
            output: Output::Sum,
        }
    }

    /// An H100's, in round numbers.
    fn limits() -> Limits {
        Limits {
            bandwidth: 3e12,
            rate: 4e14,
            launch_s: 3e-6,
            tile_tokens: 128,
            rank_step: 16,
            few_tokens: 16,
            few_launches: 1,
            plan_launches: 1,
            dense_rows: 512,
            dense_refused: None,
            dense_on_demand: None,
            dense_experts: 64,
            sparse: true,
            batch_invariant: false,
        }
    }

    #[test]
    fn forms_win_where_they_should() {
        let form = |p: &Problem| choose(p, &limits(), None).unwrap().form;
        assert_eq!(form(&Problem { tokens: 1, ..problem() }), Form::Few);
        assert_eq!(form(&problem()), Form::Dense, "few experts of small rank: no plan, no gather");
        let high_rank = Problem { tokens: 4096, ranks: 512, used_rows: 512, ..problem() };
        assert_eq!(form(&high_rank), Form::Sparse, "all of A for every token costs more than a plan");
        let many = Problem { tokens: 4096, live: 128, ranks: 2048, used_rows: 2048, ..problem() };
        assert_eq!(form(&many), Form::Beside, "each tile would run over all of 128 experts for two a token");
        let packed = choose(&Problem { packed: true, ..problem() }, &limits(), None).unwrap();
        assert!(packed.form == Form::Sparse && packed.to_string().contains("sparse takes each slice's own"));
        assert_eq!(form(&Problem { output: Output::RankSum, tokens: 1, ..problem() }), Form::Sparse);
        let invariant = Limits { batch_invariant: true, ..limits() };
        for tokens in [1, 16, 17, 4096] {
            assert_eq!(
                choose(&Problem { tokens, ..problem() }, &invariant, None).unwrap().form,
                Form::Sparse
            );
        }
    }

    #[test]
    fn a_demand_is_met_or_refused_with_the_reason() {
        assert!(choose(&problem(), &limits(), Some(Form::Beside)).unwrap().forced);
        let refused = choose(&problem(), &limits(), Some(Form::Few)).unwrap_err().to_string();
        assert!(refused.contains("few: 256 tokens, at most 16"), "{refused}");
        let limits_of =
            |refused, on_demand| Limits { dense_refused: refused, dense_on_demand: on_demand, ..limits() };
        let (never, asked) = (limits_of(Some("so it is"), None), limits_of(None, Some("so it is")));
        let refused = choose(&problem(), &never, Some(Form::Dense)).unwrap_err().to_string();
        assert!(refused.contains("dense: so it is"), "{refused}");
        assert_eq!(choose(&problem(), &asked, None).unwrap().form, Form::Sparse);
        assert_eq!(choose(&problem(), &asked, Some(Form::Dense)).unwrap().form, Form::Dense);
        let text = choose(&problem(), &limits(), None).unwrap().to_string();
        assert!(text.starts_with("dense\n") && text.contains("few    not offered"), "{text}");
    }

    #[test]
    fn work_is_what_the_formulas_of_the_page_say() {
        let p = Problem { tokens: 512, router_experts: 0, ..problem() };
        let dense = p.cost(Form::Dense, &limits()).unwrap();
        let base = 512.0 * 4096.0 * 4096.0;
        // experts * rank * (1 / in + 1 / out) of the base.
        assert!((dense.multiply_adds / base - 1.0 - 128.0 * 2.0 / 4096.0).abs() < 1e-9);
        let sparse = p.cost(Form::Sparse, &limits()).unwrap();
        // Every tile of 128 tokens uses all 8 experts, one step each.
        let extension = 512.0 * 8.0 * 16.0 * 4096.0;
        let shrink = 512.0 * 2.0 * 16.0 * 4096.0;
        assert!((sparse.multiply_adds - base - extension - shrink).abs() < 1e-6 * base);
        let beside = p.cost(Form::Beside, &limits()).unwrap();
        assert!((beside.bytes - sparse.bytes - 2.0 * 512.0 * 4096.0 * 2.0).abs() < 1.0, "y back and forth");
        assert_eq!((dense.launches, sparse.launches, beside.launches), (2, 2, 3));
    }

    #[test]
    fn absurd_sizes_cost_much_and_overflow_nothing() {
        let huge = Problem { tokens: usize::MAX, top_k: usize::MAX, out_features: usize::MAX, ..problem() };
        assert!(choose(&huge, &limits(), None).unwrap().costs.iter().any(|(_, cost)| cost.is_ok()));
    }

    #[test]
    fn nothing_to_do_costs_no_more_than_the_base() {
        let empty = Problem { live: 0, ranks: 0, used_rows: 0, ..problem() };
        for (form, cost) in choose(&empty, &limits(), None).unwrap().costs {
            if let Ok(cost) = cost {
                assert!(cost.multiply_adds <= empty.base().multiply_adds + 8.0 * 256.0 * 4096.0, "{form:?}");
                assert!(cost.seconds.is_finite());
            }
        }
    }
}
