//! candle's tensors: `sorted`, an expert's rows at a time, and `flat`, two products over all experts.

use candle_core::{DType, Device, Result, Tensor};
use molora_check::contest::{Answer, Arrays, Case, Kind, Series};
use std::rc::Rc;

const CPU: Device = Device::Cpu;

/// y as candle has it.
struct Y(Tensor);

impl Answer for Y {
    fn values(self: Box<Self>) -> std::result::Result<Vec<f32>, String> {
        self.0.flatten_all().and_then(|y| y.to_vec1()).map_err(|why| why.to_string())
    }
}

struct Shared {
    case: Case,
    x: Tensor,
    ids: Vec<i32>,
    /// With the scaling.
    gates: Vec<f32>,
    w: Vec<Tensor>,
    ab: Vec<(Tensor, Tensor)>,
    /// `[E r, d_in]` and `[d_out, E r]`.
    flat: Vec<(Tensor, Tensor)>,
}

/// All series of a case.
pub fn series(case: &Case, arrays: Arrays) -> std::result::Result<Vec<Series>, String> {
    let shared = Rc::new(Shared::new(case, arrays).map_err(|why| why.to_string())?);
    let call = |op, variant, call: fn(&Shared, usize) -> Result<Tensor>| {
        let shared = shared.clone();
        Series::new(op, variant, move |i| call(&shared, i).map(Y))
    };
    if case.kind == Kind::Ggemm {
        return Ok(vec![call("ggemm", "sorted", Shared::grouped)]);
    }
    Ok(vec![
        call("base", "product", Shared::base),
        call("lora", "sorted", |s, i| s.sorted(i, s.zeros(s.case.tokens)?)),
        call("layer", "sorted", |s, i| s.sorted(i, s.base(i)?)),
        call("lora", "flat", Shared::all_experts),
        call("layer", "flat", |s, i| s.base(i)? + s.all_experts(i)?),
    ])
}

impl Shared {
    fn new(case: &Case, arrays: Arrays) -> Result<Self> {
        let Case { tokens: t, in_features: d, out_features: o, experts: e, rank: r, .. } = *case;
        let grouped = case.kind == Kind::Ggemm;
        let w = |_| {
            let w = Tensor::from_slice(&arrays.w, arrays.w.len(), &CPU)?;
            if grouped { w.reshape((e, o, d)) } else { w.reshape((o, d)) }
        };
        let ab = |_| {
            let a = Tensor::from_slice(&arrays.a, (e, r, d), &CPU)?;
            Ok((a, Tensor::from_slice(&arrays.b, (e, o, r), &CPU)?))
        };
        let flat = |(a, b): &(Tensor, Tensor)| {
            Ok((a.reshape((e * r, d))?, b.permute((1, 0, 2))?.contiguous()?.reshape((o, e * r))?))
        };
        let copies = if grouped { 0 } else { case.copies.ab };
        let ab = (0..copies).map(ab).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            case: case.clone(),
            x: Tensor::from_slice(&arrays.x, (t, d), &CPU)?,
            gates: arrays.gates.iter().map(|gate| gate * case.scale).collect(),
            w: (0..case.copies.w).map(w).collect::<Result<_>>()?,
            flat: ab.iter().map(flat).collect::<Result<_>>()?,
            ab,
            ids: arrays.ids,
        })
    }

    fn zeros(&self, rows: usize) -> Result<Tensor> {
        Tensor::zeros((rows, self.case.out_features), DType::F32, &CPU)
    }

    fn base(&self, i: usize) -> Result<Tensor> {
        self.x.matmul(&self.w[i % self.w.len()].t()?)
    }

    /// Every live expert's routes.
    fn by_expert(&self) -> Vec<(usize, Vec<u32>)> {
        let mut routes = vec![Vec::new(); self.case.experts];
        self.ids.iter().enumerate().for_each(|(route, &id)| routes[id as usize].push(route as u32));
        routes.into_iter().enumerate().filter(|(_, routes)| !routes.is_empty()).collect()
    }

    /// Rows of x of some routes, and their tokens.
    fn rows(&self, routes: &[u32]) -> Result<(Tensor, Vec<u32>)> {
        let tokens: Vec<u32> = routes.iter().map(|route| route / self.case.top_k as u32).collect();
        Ok((self.x.index_select(&Tensor::from_slice(&tokens, tokens.len(), &CPU)?, 0)?, tokens))
    }

    fn sorted(&self, i: usize, y: Tensor) -> Result<Tensor> {
        let (a, b) = &self.ab[i % self.ab.len()];
        let (mut parts, mut all) = (Vec::new(), Vec::new());
        for (e, routes) in self.by_expert() {
            let gates: Vec<f32> = routes.iter().map(|&route| self.gates[route as usize]).collect();
            let (x, tokens) = self.rows(&routes)?;
            let h = x.matmul(&a.get(e)?.t()?)?.broadcast_mul(&Tensor::from_vec(
                gates,
                (routes.len(), 1),
                &CPU,
            )?)?;
            parts.push(h.matmul(&b.get(e)?.t()?)?);
            all.extend(tokens);
        }
        let count = all.len();
        y.index_add(&Tensor::from_vec(all, count, &CPU)?, &Tensor::cat(&parts, 0)?, 0)
    }

    fn all_experts(&self, i: usize) -> Result<Tensor> {
        let Case { tokens, top_k, experts, rank, .. } = self.case;
        let (a, b) = &self.flat[i % self.flat.len()];
        let mut matrix = vec![0.0; tokens * experts];
        for (route, (&id, gate)) in self.ids.iter().zip(&self.gates).enumerate() {
            matrix[route / top_k * experts + id as usize] += gate;
        }
        let matrix = Tensor::from_vec(matrix, (tokens, experts, 1), &CPU)?;
        let h = self.x.matmul(&a.t()?)?.reshape((tokens, experts, rank))?.broadcast_mul(&matrix)?;
        h.reshape((tokens, experts * rank))?.matmul(&b.t()?)
    }

    fn grouped(&self, i: usize) -> Result<Tensor> {
        let w = &self.w[i % self.w.len()];
        let (mut parts, mut all) = (Vec::new(), Vec::new());
        for (e, routes) in self.by_expert() {
            parts.push(self.rows(&routes)?.0.matmul(&w.get(e)?.t()?)?);
            all.extend(routes);
        }
        let count = all.len();
        let places = Tensor::from_vec(all, count, &CPU)?;
        self.zeros(self.case.routes())?.index_add(&places, &Tensor::cat(&parts, 0)?, 0)
    }
}
