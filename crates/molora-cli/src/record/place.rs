//! Labels beside their marks where nothing else lies.

use super::canvas::Frame;

/// Distances from a mark at which a label is tried, near ones first.
const DISTANCES: [f64; 9] = [8.0, 11.0, 15.0, 20.0, 27.0, 36.0, 48.0, 64.0, 84.0];
/// Directions at each distance, in twentieths of a turn from the right: above and to the right first.
const DIRECTIONS: [f64; 20] = [
    2.0, 0.0, 18.0, 8.0, 10.0, 12.0, 5.0, 15.0, 3.0, 1.0, 19.0, 17.0, 7.0, 9.0, 11.0, 13.0, 4.0, 6.0, 14.0,
    16.0,
];
/// From further away a line must lead to a label.
const NEAR: f64 = 15.0;
/// Frames keep this far from each other.
const GAP: f64 = 1.5;

/// What is taken so far.
pub struct Places {
    inside: Frame,
    taken: Vec<Frame>,
    labels: Vec<Frame>,
    leaders: Vec<Leader>,
}

impl Places {
    /// Labels must lie inside the frame.
    pub fn new(inside: Frame) -> Self {
        Self { inside, taken: Vec::new(), labels: Vec::new(), leaders: Vec::new() }
    }

    /// Nothing may lie here.
    pub fn take(&mut self, frame: Frame) {
        self.taken.push(frame);
    }

    /// Whether something lies here, or it is outside.
    pub fn is_taken(&self, frame: &Frame) -> bool {
        !self.inside.holds(frame) || self.taken.iter().any(|taken| taken.meets(frame))
    }

    /// Nothing may lie on the line.
    pub fn take_line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.taken.extend(points(from, to));
    }

    /// A free place near a mark, if possible one to which a line from the mark crosses no other label; none where all is taken.
    pub fn find(&mut self, mark: (f64, f64), size: [f64; 2]) -> Option<Placed> {
        self.search(mark, size, false).or_else(|| self.search(mark, size, true))
    }

    fn search(&mut self, mark: (f64, f64), [width, height]: [f64; 2], may_cross: bool) -> Option<Placed> {
        for distance in DISTANCES {
            for direction in DIRECTIONS {
                let angle = direction / 20.0 * std::f64::consts::TAU;
                let (cos, sin) = (angle.cos(), -angle.sin());
                // The label's middle, so that its edge and not its middle is at the distance.
                let x = mark.0 + cos * (distance + width / 2.0);
                let y = mark.1 + sin * (distance + height / 2.0 - 2.0);
                let (half_width, half_height) = (width / 2.0 + GAP, height / 2.0 + GAP);
                let frame = Frame {
                    left: x - half_width,
                    top: y - half_height,
                    right: x + half_width,
                    bottom: y + half_height,
                };
                if self.is_taken(&frame) {
                    continue;
                }
                let end = (x - cos * half_width, y - sin * half_height);
                let leader = (distance > NEAR).then(|| Leader::new(mark, end));
                let crosses = leader.iter().any(|leader| self.labels.iter().any(|label| leader.meets(label)));
                let is_crossed = self.leaders.iter().any(|other| other.meets(&frame));
                if (crosses || is_crossed) && !may_cross {
                    continue;
                }
                self.take(frame);
                self.labels.push(frame);
                let end = leader.is_some().then_some(end);
                self.leaders.extend(leader);
                return Some(Placed { at: (x - width / 2.0, y), leader: end });
            }
        }
        None
    }
}

/// The line from a mark to its label, as small frames.
struct Leader {
    points: Vec<Frame>,
}

impl Leader {
    fn new(from: (f64, f64), to: (f64, f64)) -> Self {
        Self { points: points(from, to) }
    }

    fn meets(&self, frame: &Frame) -> bool {
        self.points.iter().any(|point| point.meets(frame))
    }
}

fn points((x0, y0): (f64, f64), (x1, y1): (f64, f64)) -> Vec<Frame> {
    let steps = ((x1 - x0).hypot(y1 - y0) / 3.0).ceil().max(1.0);
    let at = |step: usize| {
        let share = step as f64 / steps;
        Frame::around((x0 + share * (x1 - x0), y0 + share * (y1 - y0)), 1.0)
    };
    (0..=steps as usize).map(at).collect()
}

/// A label's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    /// The left end of its middle line.
    pub at: (f64, f64),
    /// Where a line from the mark ends, if one must lead there.
    pub leader: Option<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_one_spot_do_not_meet() {
        let inside = Frame { left: 0.0, top: 0.0, right: 300.0, bottom: 300.0 };
        let mut places = Places::new(inside);
        let mark = (150.0, 150.0);
        places.take(Frame::around(mark, 6.0));
        places.take_line((0.0, 140.0), (300.0, 140.0));
        let size = [20.0, 12.0];
        let mut frames: Vec<Frame> = Vec::new();
        for number in 0..30 {
            let placed = places.find(mark, size).unwrap_or_else(|| panic!("no room for {number}"));
            let (x, y) = placed.at;
            let frame = Frame { left: x, top: y - 6.0, right: x + 20.0, bottom: y + 6.0 };
            assert!(inside.holds(&frame) && !frame.meets(&Frame::around(mark, 6.0)));
            assert!(!(frame.top < 140.0 && frame.bottom > 140.0), "on the line");
            assert!(frames.iter().all(|other| !other.meets(&frame)));
            assert!(number < 20 || placed.leader.is_some());
            frames.push(frame);
        }
    }

    #[test]
    fn no_room_is_no_place() {
        let mut places = Places::new(Frame { left: 0.0, top: 0.0, right: 10.0, bottom: 10.0 });
        assert_eq!(places.find((5.0, 5.0), [20.0, 12.0]), None);
    }
}
