//! Writes a golden subset of cases as dispatches: `golden DIR` makes DIR/golden.json and DIR/golden.bin, which
//! `tests/dawn/run.mjs` repeats on another implementation of WebGPU. Every case was right here first.
//!
//! Runs on the first adapter that wgpu finds, within WebGPU's default limits.

use molora::Wgpu;
use molora::device::wgpu::trace::{Command, Dispatch, Trace};
use molora::device::wgpu::{Path, Tuning};
use molora::element::{Element, ElementType};
use molora::ops::fused::Form;
use molora::ops::grouped;
use molora::ops::route::Weighting;
use molora_check::case::{Group, Scores, Scoring};
use molora_check::expect::{self, Roundings};
use molora_check::guarded::Guarded;
use molora_check::judge::Expected;
use molora_check::subject::WgpuSubject;
use molora_check::{Case, Inputs, Op, Outcome, Routing, check, with_rows};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: golden DIR")?;
    let adapters = Wgpu::adapters();
    let adapter = adapters.first().ok_or("no WebGPU adapter here")?;
    let wgpu = Wgpu::open_with(adapter, wgpu::Limits::default())?;
    // What any device can do, in both tiles, and what one with subgroups can. f16 arithmetic is left out: SwiftShader lacks it.
    let narrow = Tuning { wide_tiles: false, wide_fused: false, ..Tuning::plain() };
    let wide = Tuning { wide_tiles: true, wide_fused: true, ..narrow };
    let lanes = Tuning { path: Path::Lanes, subgroups: true, ..wide };
    let mut golden = Golden::default();
    for case in cases() {
        golden.add(&wgpu.tuned(wide)?, &case, "")?;
        if case.tokens > 8 && matches!(case.op, Op::Shrink | Op::Fused) {
            golden.add(&wgpu.tuned(narrow)?, &case, " narrow")?;
        }
        let products = matches!(case.op, Op::Shrink | Op::Expand | Op::Base | Op::Fused | Op::Grouped);
        if case.tokens > 8 && products {
            golden.add(&wgpu.tuned(lanes)?, &case, " lanes")?;
        }
    }
    let count = golden.cases.len();
    golden.write(&folder)?;
    println!("{count} cases from {}", wgpu.describe());
    Ok(())
}

/// Every room, in its forms for few tokens and for many, in every element type.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for element in ElementType::ALL {
        let case = |op: Op, tokens: usize| Case {
            tokens,
            in_features: if op == Op::Expand { 8 } else { 44 },
            out_features: if matches!(op, Op::Expand | Op::Base | Op::Fused | Op::Grouped) { 72 } else { 8 },
            ranks: vec![16, 5, 8],
            experts: 5,
            padding: 2,
            routing: Routing::WithGaps,
            ..Case::new(op).element(element)
        };
        for tokens in [3, 70] {
            all.push(Case { experts: 20, routing: Routing::Uniform, ..case(Op::Route, tokens) });
            all.push(case(Op::Attend, tokens));
            all.push(case(Op::Shrink, tokens));
            all.push(case(Op::Expand, tokens));
            all.push(Case { bias: true, ..case(Op::Base, tokens) });
        }
        all.extend([(Form::Sparse, 70), (Form::Dense, 70), (Form::Few, 3), (Form::Few, 11)].map(
            |(form, tokens)| Case { form: Some(form), bias: form != Form::Dense, ..case(Op::Fused, tokens) },
        ));
        all.extend(grouped::Rows::ALL.map(|rows| {
            let group = Group { experts: 4, rows, x_per_route: rows == grouped::Rows::Combined };
            Case { experts: 3, group, ..case(Op::Grouped, 33) }
        }));
    }
    let scoring = Scoring { scores: Scores::Prototypes, masked: true, ..Scoring::default() };
    let (weighting, experts) = (Weighting::SoftmaxAll, 33);
    all.push(Case { weighting, scoring, experts, in_features: 64, ..Case::new(Op::Route) });
    let (tokens, experts, routing) = (300, 33, Routing::WithGaps);
    all.push(Case { tokens, experts, routing, ..Case::new(Op::Plan) });
    let (slices, tokens) = (3, 70);
    all.push(Case { slices, tokens, out_features: 150, ..Case::new(Op::Fused).element(ElementType::F16) });
    all
}

/// The two files.
#[derive(Default)]
struct Golden {
    cases: Vec<Value>,
    texts: Vec<Arc<str>>,
    places: HashMap<Arc<str>, usize>,
    bytes: Vec<u8>,
}

impl Golden {
    /// Runs a case, which must be right, and keeps what was dispatched.
    fn add(&mut self, wgpu: &Wgpu, case: &Case, kind: &str) -> Result<(), Failure> {
        let wgpu = wgpu.traced();
        let subject = WgpuSubject::new(wgpu.clone());
        match check(&subject, case) {
            Outcome::Right(_) => {}
            other => return Err(format!("{case}: {other:?}").into()),
        }
        let trace = wgpu.take_trace();
        let outputs = self.outputs(&wgpu, &Inputs::new(case), &trace)?;
        let buffers: Vec<Value> = trace.buffers.iter().map(|b| self.keep(&b.before)).collect();
        let commands: Vec<Value> = trace.commands.iter().map(|command| self.command(command)).collect();
        let name = format!("{case}{kind}");
        self.cases
            .push(json!({ "name": name, "buffers": buffers, "commands": commands, "outputs": outputs }));
        Ok(())
    }

    /// Where bytes lie: offset and length.
    fn keep(&mut self, bytes: &[u8]) -> Value {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        json!([at, bytes.len()])
    }

    fn command(&mut self, command: &Command) -> Value {
        match command {
            Command::Clear { buffer, range } => json!({ "clear": buffer, "range": [range.start, range.end] }),
            Command::Dispatch(Dispatch { entry, text, groups, params, bindings }) => {
                let next = self.texts.len();
                let text = *self.places.entry(text.clone()).or_insert_with(|| {
                    self.texts.push(text.clone());
                    next
                });
                let bindings: Vec<Value> = bindings
                    .iter()
                    .map(|b| {
                        let range = [b.range.start, b.range.end];
                        json!({ "name": b.name, "buffer": b.buffer, "range": range, "writes": b.writes })
                    })
                    .collect();
                let params = self.keep(params);
                json!({ "entry": entry, "text": text, "groups": groups, "params": params, "bindings": bindings })
            }
        }
    }

    /// What the last dispatch wrote: how it is laid out, what must be there, and how far off it may be.
    fn outputs(&mut self, wgpu: &Wgpu, inputs: &Inputs, trace: &Trace) -> Result<Vec<Value>, Failure> {
        let last = trace.commands.iter().rev().find_map(|command| match command {
            Command::Dispatch(dispatch) => Some(dispatch),
            Command::Clear { .. } => None,
        });
        let written = last.ok_or("nothing was dispatched")?.bindings.iter();
        let mut outputs = Vec::new();
        for binding in written.filter(|b| b.writes && b.name != "status") {
            let buffer = &trace.buffers[binding.buffer].buffer;
            let output = match (inputs.case.op, binding.name) {
                (Op::Route, "topk_weights") => {
                    let got = wgpu.download::<f32>(buffer, buffer.size() as usize / 4)?;
                    self.weights(inputs, &got)
                }
                // Integers: the definition's here, exactly that there.
                (Op::Route | Op::Plan, _) => {
                    json!({ "exactly": self.keep(&wgpu.download::<u8>(buffer, buffer.size() as usize)?) })
                }
                (Op::Shrink, _) => self.rows(inputs, &inputs.empty_h())?,
                (Op::Attend, _) => self.rows(inputs, &inputs.empty_weights())?,
                _ => with_rows!(&inputs.y, y => self.rows(inputs, y))?,
            };
            outputs.push(json!({ "buffer": binding.buffer, "name": binding.name, "expected": output }));
        }
        if outputs.is_empty() {
            return Err(format!("{}: the last dispatch wrote nothing", inputs.case).into());
        }
        Ok(outputs)
    }

    /// Rows judged by the definition.
    fn rows<T: Element>(&mut self, inputs: &Inputs, shape: &Guarded<T>) -> Result<Value, Failure> {
        let expected = expect::rows(inputs, Roundings::default())?;
        let (limit, row_limit) = expected.limits(T::TYPE);
        Ok(self.judged(&expected, shape, &limit, &row_limit))
    }

    /// Routing weights, judged by what was right here: a few roundings of exp and of divisions.
    fn weights(&mut self, inputs: &Inputs, got: &[f32]) -> Value {
        let (tokens, routes) = (inputs.case.tokens, inputs.case.routes());
        let shape = Guarded::output((1, routes, routes), |_, _| 0f32);
        let want = got[shape.first..][..routes].to_vec();
        let limit: Vec<f32> = want.iter().map(|w| w.abs() * 1e-5 + 1e-6).collect();
        let width = routes / tokens;
        let shape = Guarded { rows: tokens, width, stride: width, ..shape };
        let (terms, length) = (want.clone(), 1);
        let (between, h_rounding) = (Vec::new(), Vec::new());
        let expected = Expected { rows: tokens, width, want, terms, length, between, h_rounding };
        self.judged(&expected, &shape, &limit, &vec![1e-5; tokens])
    }

    fn judged<T: Element>(
        &mut self,
        expected: &Expected,
        shape: &Guarded<T>,
        limit: &[f32],
        row_limit: &[f32],
    ) -> Value {
        json!({
            "element": T::TYPE.to_string(),
            "first": shape.first,
            "rows": shape.rows,
            "width": shape.width,
            "stride": shape.stride,
            "want": self.keep(bytemuck::cast_slice(&expected.want)),
            "limit": self.keep(bytemuck::cast_slice(limit)),
            "row_limit": self.keep(bytemuck::cast_slice(row_limit)),
        })
    }

    fn write(self, folder: &str) -> Result<(), Failure> {
        std::fs::create_dir_all(folder)?;
        let texts: Vec<&str> = self.texts.iter().map(AsRef::as_ref).collect();
        let golden = json!({ "texts": texts, "cases": self.cases });
        std::fs::write(format!("{folder}/golden.json"), golden.to_string())?;
        std::fs::write(format!("{folder}/golden.bin"), &self.bytes)?;
        Ok(())
    }
}
