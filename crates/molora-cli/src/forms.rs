//! `molora forms`: which form of the fused layer the cost model chooses at the sizes of published models, and why.

use crate::verify::chosen;
use anyhow::Result;
use molora::ElementType;
use molora::ops::Output;
use molora::ops::fused::Form;
use molora::ops::fused::cost::{self, Choice, Cost, Problem};
use molora_check::Subject;
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// Print the form of the fused layer that is chosen at the sizes of published models, and the cost model's reasons
#[derive(clap::Args)]
pub struct FormsArgs {
    /// Only devices with this in their name (`cpu`, `cuda`, `wgpu`, `lavapipe`, ..)
    #[arg(long)]
    device: Option<String>,
    /// Elements of x, the weight and the adapters (`f32`, `f16`, `bf16`)
    #[arg(long, default_value = "bf16", value_parser = parse_element)]
    element: ElementType,
    /// Tokens of a call
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 16, 64, 256, 1024, 4096])]
    tokens: Vec<usize>,
    /// Only layers with this in their name
    #[arg(long, default_value = "")]
    layer: String,
    /// Every form's launches, bytes and multiply-adds, or why it is not offered
    #[arg(long)]
    why: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

fn parse_element(text: &str) -> Result<ElementType, String> {
    let all = ElementType::ALL;
    all.into_iter().find(|e| e.name() == text).ok_or_else(|| "expected f32, f16 or bf16".into())
}

/// A layer of a published model.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Whose.
    pub name: &'static str,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Adapters in the pool.
    pub experts: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Ranks, repeated over the adapters.
    pub ranks: &'static [usize],
    /// Whether the layer chooses by a router of its own; else ids come with the call.
    pub router: bool,
    /// Whether the output has slices.
    pub packed: bool,
}

const fn layer(
    name: &'static str,
    (in_features, out_features): (usize, usize),
    (experts, top_k): (usize, usize),
    ranks: &'static [usize],
    router: bool,
) -> Layer {
    Layer { name, in_features, out_features, experts, top_k, ranks, router, packed: false }
}

/// The layers of the table: mixtures with a router of their own, then many adapters with one for every token.
pub const LAYERS: [Layer; 10] = [
    layer("MING-MOE 7B up", (4096, 11008), (8, 2), &[16], true),
    layer("MING-MOE 7B down", (11008, 4096), (8, 2), &[16], true),
    layer("MING-MOE 1.8B up", (2048, 5504), (8, 2), &[16], true),
    layer("PHATGOOSE 36", (2048, 2048), (36, 2), &[16], true),
    layer("PHATGOOSE 166", (2048, 5120), (166, 2), &[16], true),
    layer("RAMoLE", (4096, 4096), (48, 3), &[6, 8], false),
    Layer { packed: true, ..layer("adapters 64 on q, k, v", (4096, 6144), (64, 1), &[24, 48, 192], false) },
    layer("adapters 64", (4096, 4096), (64, 1), &[8, 16, 64], false),
    layer("adapters 1024", (4096, 4096), (1024, 1), &[8, 16, 64], false),
    layer("heads on 768", (768, 6144), (4, 1), &[8], false),
];

impl Layer {
    /// What the cost model is asked.
    pub fn problem(&self, element: ElementType, tokens: usize) -> Problem {
        let ranks = (0..self.experts).map(|e| self.ranks[e % self.ranks.len()]).sum();
        Problem {
            tokens,
            top_k: self.top_k,
            in_features: self.in_features,
            out_features: self.out_features,
            x: element,
            adapters: element,
            live: self.experts,
            ranks,
            used_rows: ranks,
            router_experts: if self.router { self.experts } else { 0 },
            packed: self.packed,
            output: Output::Sum,
        }
    }

    fn describe(&self) -> String {
        let Self { name, in_features, out_features, experts, top_k, ranks, .. } = self;
        let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
        format!("{name}: {in_features} x {out_features}, {top_k} of {experts}, rank {}", ranks.join("+"))
    }
}

/// The device's choice for a layer, with every form's cost or the reason why it is not offered.
pub fn choice(subject: &dyn Subject, problem: &Problem) -> molora::Result<Choice> {
    cost::choose(problem, &subject.limits(problem), None)
}

/// Runs the command.
pub fn run(args: &FormsArgs) -> Result<ExitCode> {
    for subject in chosen(args.device.as_deref())? {
        if !args.json {
            println!("{}", subject.name());
        }
        for layer in LAYERS.iter().filter(|layer| layer.name.contains(&args.layer)) {
            if !args.json {
                println!("  {}", layer.describe());
                println!(
                    "    tokens  {} us of the model",
                    Form::ALL.map(|form| format!("{:>12}", form.name())).concat()
                );
            }
            for &tokens in &args.tokens {
                let problem = layer.problem(args.element, tokens);
                let choice = choice(subject.as_ref(), &problem);
                if args.json {
                    println!("{}", object(subject.as_ref(), layer, args.element, tokens, &choice));
                } else {
                    println!("{}", text(tokens, &choice, args.why));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A line a number of tokens: the model's microseconds of each form, a star at the chosen one.
fn text(tokens: usize, choice: &molora::Result<Choice>, why: bool) -> String {
    let choice = match choice {
        Ok(choice) => choice,
        Err(error) => return format!("    {tokens:>6}  {error}"),
    };
    let cell = |(form, cost): &(Form, Result<Cost, String>)| match cost {
        Ok(cost) if *form == choice.form => format!("{:>11.1}*", cost.seconds * 1e6),
        Ok(cost) => format!("{:>11.1} ", cost.seconds * 1e6),
        Err(_) => format!("{:>11} ", "-"),
    };
    let mut line = format!("    {tokens:>6}  {}", choice.costs.iter().map(cell).collect::<String>());
    if why {
        let reasons = choice.to_string();
        reasons.lines().skip(1).for_each(|reason| line += &format!("\n          {reason}"));
    }
    line
}

fn object(
    subject: &dyn Subject,
    layer: &Layer,
    element: ElementType,
    tokens: usize,
    choice: &molora::Result<Choice>,
) -> Value {
    let mut forms = Map::new();
    for (form, cost) in choice.iter().flat_map(|choice| &choice.costs) {
        let value = match cost {
            Ok(c) => json!({
                "us": c.seconds * 1e6,
                "launches": c.launches,
                "setup_launches": c.setup_launches,
                "bytes": c.bytes,
                "multiply_adds": c.multiply_adds,
            }),
            Err(why) => json!({"not_offered": why}),
        };
        forms.insert(form.name().into(), value);
    }
    json!({
        "device": subject.name(),
        "layer": layer.describe(),
        "element": element.name(),
        "tokens": tokens,
        "form": choice.as_ref().map(|choice| choice.form.name()).ok(),
        "refused": choice.as_ref().err().map(ToString::to_string),
        "forms": forms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora_check::subject::CpuSubject;

    #[test]
    fn every_layer_has_a_line_with_the_chosen_form_or_the_reason() {
        let cpu = CpuSubject::new().unwrap();
        for layer in LAYERS {
            for tokens in [1, 16, 4096] {
                let choice = choice(&cpu, &layer.problem(ElementType::Bf16, tokens));
                let line = text(tokens, &choice, false);
                let (object, long) =
                    (object(&cpu, &layer, ElementType::Bf16, tokens, &choice), text(tokens, &choice, true));
                let Ok(choice) = choice else {
                    assert!(layer.packed && line.contains("a form that the device offers"), "{line}");
                    continue;
                };
                assert_eq!(line.matches('*').count(), 1, "{line}");
                assert_eq!(object["form"], choice.form.name());
                assert_eq!(long.lines().count(), 1 + Form::ALL.len(), "{long}");
                let us = &object["forms"][choice.form.name()]["us"];
                assert!(line.contains(&format!("{:.1}*", us.as_f64().unwrap())), "{line} {us}");
            }
        }
    }

    #[test]
    fn the_chosen_form_is_the_cheapest_that_is_offered() {
        let cpu = CpuSubject::new().unwrap();
        let choice = choice(&cpu, &LAYERS[0].problem(ElementType::F32, 64)).unwrap();
        let seconds = |form| {
            let (_, cost) = choice.costs.iter().find(|(other, _)| *other == form).unwrap();
            cost.as_ref().map_or(f64::INFINITY, |cost| cost.seconds)
        };
        assert!(Form::ALL.iter().all(|form| seconds(choice.form) <= seconds(*form)));
    }
}
