//! Both pictures, judged by what a renderer makes of them.

use super::png::parse;
use super::series::example::{line, ratio, record};
use super::{SCALE, Unit, bars, png, roofline};
use molora_check::Op;
use molora_check::named::{Extent, named};
use molora_check::record::{Ceiling, Line, Record};
use molora_check::report::OURS;
use molora_check::report::Work;
use resvg::tiny_skia::{Pixmap, Rect};
use resvg::usvg::{Group, Node, roxmltree};

/// Every timed case of these operations with times that crowd them together, and a contender beside each.
fn crowded(ops: &[Op]) -> Record {
    let mut lines = Vec::new();
    for case in ops.iter().flat_map(|&op| named(op, Extent::Usual, &[1, 64, 512])) {
        let (flops, bytes) = (case.tokens as f64 * 1e8, 1e8 + case.tokens as f64 * 1e5);
        let us = (flops / 1e5).max(bytes / 1e4) * (1.0 + 0.1 * (lines.len() % 7) as f64);
        let mut own = Line { work: Work { flops, bytes }, ..line(&case.label("cpu"), OURS, us) };
        own.ratios = vec![ratio("base", 0.93, Some([0.91, 0.95])), ratio("definition", 33.0, None)];
        let torch = Line { work: own.work, ..line(&own.case, "torch/loop", us * 2.5) };
        lines.extend([own, torch]);
    }
    let mut record = record(lines);
    for (element, gflop_per_s) in [("f16", 201.0), ("bf16", 170.0)] {
        let ceiling = Ceiling { element: element.into(), gflop_per_s, ..record.ceilings[0].clone() };
        record.ceilings.push(ceiling);
    }
    record
}

/// The frames of a picture's texts, as a renderer lays them out.
fn frames(group: &Group, frames: &mut Vec<(String, Rect)>) {
    for node in group.children() {
        match node {
            Node::Group(group) => self::frames(group, frames),
            Node::Text(text) => {
                let chunks = text.chunks().iter().map(|chunk| chunk.text()).collect();
                frames.push((chunks, text.abs_bounding_box()));
            }
            _ => {}
        }
    }
}

/// Fails where texts overlap or leave the picture; gives their number.
fn texts_are_apart(svg: &str) -> usize {
    let tree = parse(svg).unwrap();
    let mut texts = Vec::new();
    frames(tree.root(), &mut texts);
    let (width, height) = (tree.size().width(), tree.size().height());
    for (i, (text, a)) in texts.iter().enumerate() {
        let inside = a.left() >= 0.0 && a.right() <= width && a.top() >= 0.0 && a.bottom() <= height;
        assert!(inside, "{text:?} leaves the picture of {width} x {height}: {a:?}");
        for (other, b) in &texts[..i] {
            // A pixel of rounding.
            let apart = a.left() + 1.0 > b.right()
                || b.left() + 1.0 > a.right()
                || a.top() + 1.0 > b.bottom()
                || b.top() + 1.0 > a.bottom();
            assert!(apart, "{text:?} {a:?} lies on {other:?} {b:?}");
        }
    }
    texts.len()
}

fn has_every_case(svg: &str, record: &Record) {
    let document = roxmltree::Document::parse(svg).unwrap();
    let texts: Vec<String> = document
        .descendants()
        .filter(|node| node.has_tag_name("text"))
        .map(|node| node.text().unwrap_or_default().trim().to_owned())
        .collect();
    for line in &record.lines {
        assert!(texts.contains(&line.case), "{} is not in the picture", line.case);
    }
}

#[test]
fn the_roofline_has_every_case_and_its_texts_lie_apart() {
    for ops in [&[Op::Base][..], &[Op::Delta, Op::Layer, Op::Plan], &Op::ALL] {
        let record = crowded(ops);
        let svg = roofline(&record, "cpu").unwrap();
        has_every_case(&svg, &record);
        // Every case has a row of the key, of two texts and a number, and a number beside its mark.
        assert!(texts_are_apart(&svg) > 2 * record.lines.len());
        for text in ["f32, f16: 200 GFLOP/s", "bf16: 170 GFLOP/s", "20.0 GB/s", "Roofline of cpu, 2026-01-02"]
        {
            assert!(svg.contains(text), "{text}");
        }
    }
}

#[test]
fn cases_without_operations_and_devices_without_ceilings_are_said() {
    let mut record = crowded(&[Op::Base]);
    assert!(!roofline(&record, "cpu").unwrap().contains("not drawn"));
    record.ceilings.clear();
    record.lines[0].work.flops = 0.0;
    let svg = roofline(&record, "cpu").unwrap();
    assert!(svg.contains("no ceilings were measured") && svg.contains("not drawn"));
    has_every_case(&svg, &record);
    record.lines.iter_mut().for_each(|line| line.work.flops = 0.0);
    assert!(roofline(&record, "cpu").unwrap().contains("</svg>"));
}

#[test]
fn operations_that_are_no_room_have_marks_of_their_own() {
    let lines = ["ggemm/cpu/a", "lora/cpu/a", "base/cpu/a", "lora/cpu/b"].map(|case| line(case, OURS, 10.0));
    let record = record(lines.to_vec());
    let svg = roofline(&record, "cpu").unwrap();
    has_every_case(&svg, &record);
    for name in ["ggemm", "lora", "base"] {
        // In the legend and in the key.
        assert_eq!(svg.lines().filter(|text| text.trim() == name).count(), 2, "{name}");
    }
}

#[test]
fn bars_have_every_case_and_series_and_their_texts_lie_apart() {
    for (ops, unit) in [(&[Op::Base][..], Unit::Molora), (&Op::ALL, Unit::Floor), (&Op::ALL, Unit::Molora)] {
        let mut record = crowded(ops);
        record.lines[0].ratios.push(ratio("peft", 40.0, Some([35.0, 45.0])));
        let svg = bars(&record, "cpu", unit).unwrap().unwrap();
        has_every_case(&svg, &record);
        for text in [OURS, "base", "torch/loop", "peft"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("definition"));
        texts_are_apart(&svg);
    }
}

#[test]
fn bars_show_the_records_figures() {
    let mut own = line("base/cpu/f32/t1", OURS, 100.0);
    own.ratios = vec![ratio("torch/loop", 3.0, Some([2.5, 3.5]))];
    let torch = line("base/cpu/f32/t1", "torch/loop", 320.0);
    let record = record(vec![own, torch]);
    let molora = bars(&record, "cpu", Unit::Molora).unwrap().unwrap();
    assert!(molora.contains("1.00 [0.90, 1.10]") && molora.contains("3.00 [2.50, 3.50]"));
    // The floor is half the time of ours.
    let floor = bars(&record, "cpu", Unit::Floor).unwrap().unwrap();
    assert!(floor.contains("2.00 [1.80, 2.20]") && floor.contains("6.40 [5.76, 7.04]"));
    let mut alone = record;
    alone.lines[0].floor = None;
    assert_eq!(bars(&alone, "cpu", Unit::Floor).unwrap(), None);
    alone.lines.truncate(1);
    alone.lines[0].ratios.clear();
    assert_eq!(bars(&alone, "cpu", Unit::Molora).unwrap(), None);
}

/// Shares of pixels that are not white.
fn inked(pixels: &Pixmap) -> f64 {
    let inked = pixels.pixels().iter().filter(|p| (p.red(), p.green(), p.blue()) != (255, 255, 255)).count();
    inked as f64 / pixels.pixels().len() as f64
}

#[test]
fn pngs_have_the_svgs_size_and_are_drawn() {
    let record = crowded(&[Op::Delta]);
    for svg in [roofline(&record, "cpu").unwrap(), bars(&record, "cpu", Unit::Molora).unwrap().unwrap()] {
        let (picture, tree) = (Pixmap::decode_png(&png(&svg).unwrap()).unwrap(), parse(&svg).unwrap());
        let size = [tree.size().width() * SCALE, tree.size().height() * SCALE];
        assert_eq!([picture.width() as f32, picture.height() as f32], size);
        let share = inked(&picture);
        assert!((0.01..0.5).contains(&share), "{share} of the pixels are drawn");
    }
}

#[test]
fn texts_are_drawn_by_the_embedded_font_alone() {
    let with = |text: &str| {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"200\" height=\"40\">\
             <rect width=\"200\" height=\"40\" fill=\"white\"/>\
             <text x=\"5\" y=\"25\" font-size=\"16\" font-family=\"{}\">{text}</text></svg>",
            super::canvas::FONT
        )
    };
    let ink = |text: &str| inked(&Pixmap::decode_png(&png(&with(text)).unwrap()).unwrap());
    assert_eq!(ink(""), 0.0);
    assert!(ink("|") > 0.0 && ink("GFLOP/s") > 4.0 * ink("|"));
    assert!(png("<svg").is_err());
}
