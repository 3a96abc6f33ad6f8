//! The harness against a subject that lies: a wrong answer is never timed.

use molora::element::ElementType;
use molora::error::{Error, Result};
use molora::ops::fused::cost;
use molora_check::bench::{Refused, time};
use molora_check::ceilings::{Meter, ceilings};
use molora_check::guarded::{Guarded, Tensor};
use molora_check::measure::Budget;
use molora_check::record::Ceiling;
use molora_check::report::OURS;
use molora_check::subject::{CpuSubject, PlanArrays, Timer};
use molora_check::{Case, Inputs, Op, Subject};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The CPU, with one element of every h and y off by a little where `wrong`, an error where `fails`.
struct Liar {
    cpu: CpuSubject,
    wrong: bool,
    fails: bool,
    timed: AtomicUsize,
}

impl Liar {
    fn new(wrong: bool, fails: bool) -> Self {
        Self { cpu: CpuSubject::new().unwrap(), wrong, fails, timed: AtomicUsize::new(0) }
    }

    fn spoil(&self, done: Result<()>, y: &mut Tensor) -> Result<()> {
        if let (true, Tensor::F32(y)) = (self.wrong, y) {
            self.spoil_rows(y);
        }
        self.fail(done)
    }

    fn spoil_rows(&self, rows: &mut Guarded<f32>) {
        if let (true, Some(last)) = (self.wrong, rows.cells_mut().last_mut()) {
            *last += 0.5;
        }
    }

    fn fail(&self, done: Result<()>) -> Result<()> {
        let lost = || Error::Device { device: "liar".into(), reason: "status word: bad_id".into() };
        if self.fails { Err(lost()) } else { done }
    }
}

impl Subject for Liar {
    fn kind(&self) -> &'static str {
        "liar"
    }

    fn name(&self) -> String {
        "liar".into()
    }

    fn details(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn batch_invariant(&self) -> Box<dyn Subject> {
        Box::new(Self::new(self.wrong, self.fails))
    }

    fn limits(&self, problem: &cost::Problem) -> cost::Limits {
        self.cpu.limits(problem)
    }

    fn unsupported(&self, case: &Case) -> Option<String> {
        (case.x == ElementType::Bf16).then(|| "no bf16".into())
    }

    fn route(&self, inputs: &Inputs, ids: &mut Guarded<i32>, weights: &mut Guarded<f32>) -> Result<()> {
        self.cpu.route(inputs, ids, weights)
    }

    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays> {
        self.cpu.plan(inputs)
    }

    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()> {
        let done = self.cpu.shrink(inputs, h);
        self.spoil_rows(h);
        self.fail(done)
    }

    fn attend(&self, inputs: &Inputs, weights: &mut Guarded<f32>) -> Result<()> {
        self.cpu.attend(inputs, weights)
    }

    fn expand(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.expand(inputs, y), y)
    }

    fn base(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.base(inputs, y), y)
    }

    fn delta(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.delta(inputs, y), y)
    }

    fn layer(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.layer(inputs, y), y)
    }

    fn fused(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.fused(inputs, y), y)
    }

    fn grouped(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.spoil(self.cpu.grouped(inputs, y), y)
    }

    fn meter(&self) -> Result<Option<Box<dyn Meter + '_>>> {
        self.cpu.meter()
    }

    fn clock(&self) -> Result<&'static str> {
        self.cpu.clock()
    }

    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>> {
        self.timed.fetch_add(1, Ordering::Relaxed);
        self.cpu.timer(inputs)
    }
}

fn ceiling(device: &str, gflop_per_s: f64, gb_per_s: f64) -> Vec<Ceiling> {
    vec![Ceiling { device: device.into(), element: "f32".into(), gflop_per_s, gb_per_s }]
}

#[test]
fn a_wrong_answer_is_never_timed() {
    for op in [Op::Shrink, Op::Expand, Op::Base, Op::Delta, Op::Layer, Op::Fused, Op::Grouped] {
        let case = Case { tokens: 5, ..Case::new(op) };
        for (wrong, fails) in [(true, false), (false, true)] {
            let liar = Liar::new(wrong, fails);
            let got = time(&liar, &case, &[], &Budget::QUICK);
            assert!(matches!(got, Err(Refused::Wrong(_))), "{case}: {got:?}");
            assert_eq!(liar.timed.load(Ordering::Relaxed), 0, "{case}");
        }
        let honest = Liar::new(false, false);
        assert!(time(&honest, &case, &[], &Budget::QUICK).is_ok(), "{case}");
    }
}

#[test]
fn a_case_that_cannot_be_timed_says_why() {
    let (liar, case) = (Liar::new(false, false), Case::new(Op::Base));
    let not =
        |case: &Case, ceilings: &[Ceiling], part: &str| match time(&liar, case, ceilings, &Budget::QUICK) {
            Err(Refused::NotTimed(why)) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        };
    not(&case.clone().element(ElementType::Bf16), &[], "not supported: no bf16");
    not(&case, &ceiling("liar", 1e-9, 1.0), "a call takes at least");
    not(&Case { in_features: 1 << 20, out_features: 1 << 20, ..case.clone() }, &[], "GiB of memory");
    assert_eq!(liar.timed.load(Ordering::Relaxed), 0);
}

#[test]
fn a_layer_stands_beside_its_base() {
    let (cpu, case) = (CpuSubject::new().unwrap(), Case { tokens: 8, ..Case::new(Op::Layer) });
    let ceilings = ceiling(&cpu.name(), 100.0, 10.0);
    let lines = time(&cpu, &case, &ceilings, &Budget::QUICK).unwrap();
    let series: Vec<&str> = lines.iter().map(|line| line.series.as_str()).collect();
    assert_eq!(series, [OURS, "base"]);
    assert!(lines.iter().all(|l| l.case == case.label("cpu") && l.samples >= 5 && l.latency_us_median > 0.0));
    assert!(lines[0].work.flops > lines[1].work.flops && lines[0].floor.unwrap().us() > 0.0);
    let ratio = &lines[0].ratios[0];
    assert_eq!((ratio.to.as_str(), ratio.pairs), ("base", lines[0].samples));
    assert_eq!(ratio.interval.is_some(), ratio.pairs >= 30);
    assert!(lines[0].error.unwrap() < 1e-5 && ratio.ratio > 0.0);
    // The definition is the baseline of what has no base.
    let plain = time(&cpu, &Case::new(Op::Shrink), &[], &Budget::QUICK).unwrap();
    assert_eq!((plain.len(), plain[0].ratios[0].to.as_str(), plain[0].floor), (1, "definition", None));
}

#[test]
fn ceilings_are_plausible_on_every_device() {
    for subject in molora_check::subjects().unwrap_or_else(|why| panic!("{why}")) {
        let found = ceilings(subject.as_ref()).unwrap();
        if subject.is_stand_in() {
            assert!(found.is_empty(), "no time of a stand-in is ever told");
            continue;
        }
        let elements: Vec<&str> = found.iter().map(|c| c.element.as_str()).collect();
        assert_eq!(elements, ["f32", "f16", "bf16"]);
        for ceiling in &found {
            assert_eq!(ceiling.device, subject.name());
            // From a software driver on a busy core to the largest GPU.
            assert!(ceiling.gflop_per_s > 0.05 && ceiling.gflop_per_s < 1e7, "{ceiling:?}");
            assert!(ceiling.gb_per_s > 0.02 && ceiling.gb_per_s < 1e5, "{ceiling:?}");
        }
    }
}

#[test]
fn every_device_times_what_is_right() {
    for subject in molora_check::subjects().unwrap_or_else(|why| panic!("{why}")) {
        if subject.is_stand_in() {
            continue;
        }
        let case = Case { tokens: 3, in_features: 256, out_features: 512, ..Case::new(Op::Layer) };
        let lines = time(subject.as_ref(), &case, &[], &Budget::QUICK).unwrap();
        assert_eq!(lines.len(), 2, "{}", subject.name());
        assert!(lines.iter().all(|line| line.latency_us_median > 0.0), "{lines:?}");
        assert!(["wall", "timestamps", "events"].contains(&lines[0].clock.as_str()), "{}", lines[0].clock);
    }
}
