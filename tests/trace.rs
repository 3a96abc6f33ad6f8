//! Traces: what is recorded, counted, written and read back, and what is refused.

use molora::error::{Error, Result};
use molora::trace::Trace;
use proptest::prelude::*;

fn example() -> Trace {
    let mut trace = Trace::new(["law", "clinic", "none"]);
    trace.record("layers.0.up", 2, &[1, 0, 0, -1], &[0.75, 0.25, 1.0, f32::NAN]).unwrap();
    trace.record("layers.0.down", 1, &[-1, 1], &[9.0, 0.5]).unwrap();
    trace.record("layers.0.up", 3, &[-1, 1, 0], &[0.0, 0.625, 0.375]).unwrap();
    trace.add_part("prompt", vec!["a".into(), " b\n".into()]);
    trace
}

fn written(trace: &Trace) -> String {
    let mut bytes = Vec::new();
    trace.write_jsonl(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn read(text: &str) -> Result<Trace> {
    Trace::read_jsonl(text.as_bytes())
}

#[test]
fn counts_routes_weights_and_first_choices() {
    let trace = example();
    let counters = trace.counters();
    let of =
        |i: usize| (counters[i].name.as_str(), counters[i].routes, counters[i].weight, counters[i].first);
    assert_eq!(of(0), ("law", 3, 1.625, 1));
    assert_eq!(of(1), ("clinic", 3, 1.875, 3), "the first live one counts, also behind a -1");
    assert_eq!(of(2), ("none", 0, 0.0, 0));
    assert_eq!(trace.tokens(), 2, "both layers have seen two");
    assert!(
        trace
            .layers()
            .iter()
            .map(|layer| (layer.name(), layer.tokens()))
            .eq([("layers.0.up", 3), ("layers.0.down", 2)])
    );
    let up = &trace.layers()[0];
    assert!(up.of(0).eq([(1, 0.75), (0, 0.25)]) && up.of(1).eq([(0, 1.0)]), "a -1 is no route");
    assert_eq!((trace.layers()[1].of(0).count(), up.of(3).count(), up.of(99).count()), (0, 0, 0));
    assert_eq!(Trace::new(["x"]).tokens(), 0);
}

#[test]
fn bad_ids_and_lengths_are_refused_and_leave_the_trace() {
    let refused = |top_k: usize, ids: &[i32], weights: &[f32]| {
        let mut trace = example();
        let error = trace.record("layers.9.new", top_k, ids, weights).unwrap_err();
        assert_eq!(trace, example());
        match error {
            Error::Argument { op: "trace", argument, .. } => argument,
            other => panic!("{other}"),
        }
    };
    assert_eq!(refused(0, &[], &[]), "top_k");
    assert_eq!(refused(2, &[0], &[1.0]), "topk_ids");
    assert_eq!(refused(1, &[0, 1], &[1.0]), "topk_weights");
    assert_eq!(refused(2, &[0, 3], &[1.0, 0.0]), "topk_ids[1]");
    assert_eq!(refused(1, &[-2], &[1.0]), "topk_ids[0]");
    assert_eq!(refused(1, &[i32::MIN], &[1.0]), "topk_ids[0]");
    assert_eq!(refused(2, &[0, 1], &[1.0, f32::INFINITY]), "topk_weights[1]");
    assert_eq!(refused(1, &[0], &[f32::NAN]), "topk_weights[0]");
    let mut trace = example();
    trace.record("layers.9.new", 2, &[], &[]).unwrap();
    assert_eq!(trace.tokens(), 0, "a layer that has seen no token");
}

#[test]
fn lines_are_as_documented_and_read_back() {
    let text = written(&example());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            r#"{"molora_trace":1,"names":["law","clinic","none"]}"#,
            r#"{"part":"prompt","tokens":["a"," b\n"]}"#,
            r#"{"layer":"layers.0.up","token":0,"experts":[1,0],"weights":[0.75,0.25]}"#,
            r#"{"layer":"layers.0.up","token":1,"experts":[0],"weights":[1.0]}"#,
            r#"{"layer":"layers.0.up","token":2,"experts":[1,0],"weights":[0.625,0.375]}"#,
            r#"{"layer":"layers.0.down","token":0,"experts":[],"weights":[]}"#,
            r#"{"layer":"layers.0.down","token":1,"experts":[1],"weights":[0.5]}"#,
        ]
    );
    assert_eq!(read(&text).unwrap(), example());
    assert_eq!(read(&written(&Trace::new(Vec::<String>::new()))).unwrap().names().len(), 0);
}

#[test]
fn files_that_are_no_traces_are_refused_by_line() {
    let names = r#"{"molora_trace":1,"names":["a"]}"#;
    let refused = |text: &str| match read(text) {
        Err(Error::Format { file, item, .. }) => {
            assert_eq!(file, "trace");
            item
        }
        other => panic!("{text}: {other:?}"),
    };
    let choice = |token: &str, experts: &str, weights: &str| {
        format!(r#"{{"layer":"x","token":{token},"experts":{experts},"weights":{weights}}}"#)
    };
    let good = choice("0", "[0]", "[1.0]");
    assert!(read(&format!("{names}\n{good}\n")).is_ok());
    for (text, line) in [
        (String::new(), "line 1"),
        ("{}".into(), "line 1"),
        (good.clone(), "line 1"),
        (r#"{"molora_trace":2,"names":[]}"#.into(), "line 1"),
        (format!("{names}\n{names}"), "line 2"),
        (format!("{names}\n\n{good}"), "line 2"),
        (format!("{names}\n{good}\n{good}"), "line 3"),
        (format!("{names}\n{}", choice("1", "[0]", "[1.0]")), "line 2"),
        (format!("{names}\n{}", choice("0", "[1]", "[1.0]")), "line 2"),
        (format!("{names}\n{}", choice("0", "[-1]", "[1.0]")), "line 2"),
        (format!("{names}\n{}", choice("0", "[0]", "[]")), "line 2"),
        (format!("{names}\n{}", choice("0", "[0]", "[1e99]")), "line 2"),
        (format!("{names}\n{}", choice("0", "[0]", "[null]")), "line 2"),
        (format!("{names}\n{}", good.replace("token", "tokens")), "line 2"),
        (format!("{names}\n{}", good.replace("}", ",\"more\":1}")), "line 2"),
        (format!("{names}\n{}", &good[..good.len() - 1]), "line 2"),
    ] {
        assert_eq!(refused(&text), line, "{text}");
    }
    assert!(Trace::read_jsonl(&b"\xff\xfe\n"[..]).is_err());
}

/// A place that takes no more than some bytes.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let length = written(&example()).len();
    assert!(example().write_jsonl(Full(length)).is_ok());
    for room in [0, 10, length - 1] {
        assert!(example().write_jsonl(Full(room)).is_err(), "{room}");
    }
}

proptest! {
    /// Weights come back to the bit, of any magnitude and sign.
    #[test]
    fn what_is_written_is_read_back(
        routes in prop::collection::vec((0..3u8, -1..4i32, any::<f32>().prop_filter("finite", |w| w.is_finite())), 0..60),
    ) {
        let mut trace = Trace::new(["a", "b", "\"c\"\n", ""]);
        for (layer, id, weight) in routes {
            trace.record(&format!("layer {layer}"), 1, &[id], &[weight]).unwrap();
        }
        let again = read(&written(&trace)).unwrap();
        prop_assert_eq!(written(&again), written(&trace));
        // A -0.0 is equal to 0.0: the texts above tell them apart.
        prop_assert_eq!(again, trace);
    }
}
