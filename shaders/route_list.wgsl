// From scores to ids and weights: the lists of the best of LISTS tokens, in workgroup memory; one lane keeps each. Nothing
// else of the scores is kept but a running maximum and sum.
//
//     for every score that the token may take:  meet: insert into the list, add to the sum
//     weigh: drop what the threshold drops, then scores to weights

const LIST: u32 = TOP_K + 1u; // WGSL has no empty arrays
// Entry j of list l lies at j * LISTS + l: neighbouring lanes, neighbouring words.
var<workgroup> best_scores: array<f32, LISTS * LIST>;
var<workgroup> best_ids: array<u32, LISTS * LIST>;

struct Seen {
    chosen: u32, // entries of the list
    finite: bool,
    largest: f32,
    total: f32, // of exp(score - largest)
    last: f32, // the score of the row behind the experts'
}

fn nothing_seen() -> Seen { return Seen(0u, true, 0.0, 0.0, 0.0); }

fn meet(list: u32, seen: ptr<function, Seen>, allowed: u32, e: u32, experts: u32, z: f32) {
    if (e < experts && !allows(allowed, e)) { return; }
    if (!is_finite(z)) {
        (*seen).finite = false;
        return;
    }
    if (e >= experts) {
        (*seen).last = z;
        return;
    }
    let chosen = (*seen).chosen;
    if (SHARES == 1u) {
        if (chosen == 0u) {
            (*seen).largest = z;
        } else if (z > (*seen).largest) {
            (*seen).total *= exp((*seen).largest - z);
            (*seen).largest = z;
        }
        (*seen).total += exp(z - (*seen).largest);
    }
    // Insertion; an equal score stays behind the lower expert.
    var place = chosen;
    while (place > 0u && z > best_scores[(place - 1u) * LISTS + list]) { place--; }
    if (place >= TOP_K) { return; }
    let count = min(chosen + 1u, TOP_K);
    for (var j = count - 1u; j > place; j--) {
        best_scores[j * LISTS + list] = best_scores[(j - 1u) * LISTS + list];
        best_ids[j * LISTS + list] = best_ids[(j - 1u) * LISTS + list];
    }
    best_scores[place * LISTS + list] = z;
    best_ids[place * LISTS + list] = e;
    (*seen).chosen = count;
}

fn sigmoid(z: f32) -> f32 { return 1.0 / (1.0 + exp(-z)); }

// Leaves ids, NONE for nothing, and weights in the list; false where a score is not finite.
fn weigh(list: u32, seen: Seen) -> bool {
    var kept = select(0u, seen.chosen, seen.finite);
    let largest = best_scores[list];
    var threshold = 0.0;
    if (THRESHOLD != NO_THRESHOLD && kept > 0u) {
        threshold = threshold_given();
        if (THRESHOLD == LEARNED_THRESHOLD) { threshold *= sigmoid(seen.last); }
        kept = 0u;
        while (kept < seen.chosen && exp(best_scores[kept * LISTS + list] - largest) / seen.total > threshold) {
            kept++;
        }
    }
    var sum = 0.0;
    for (var j = 0u; j < kept; j++) {
        let at = j * LISTS + list;
        let weight = weight_of(best_scores[at], largest, seen.total, threshold, kept);
        best_scores[at] = weight;
        sum += weight;
    }
    if (NORMALISED == 1u) {
        for (var j = 0u; j < kept; j++) { best_scores[j * LISTS + list] /= sum; }
    }
    for (var j = kept; j < TOP_K; j++) {
        best_ids[j * LISTS + list] = NONE;
        best_scores[j * LISTS + list] = 0.0;
    }
    if (!seen.finite) { atomicOr(&status, SCORE_NOT_FINITE); }
    return seen.finite;
}

// Before it is divided by the sum, where the weighting does that.
fn weight_of(z: f32, largest: f32, total: f32, threshold: f32, kept: u32) -> f32 {
    if (WEIGHTING == SIGMOID) { return sigmoid(z); }
    if (WEIGHTING == UNIFORM) { return 1.0 / f32(kept); }
    if (WEIGHTING == SCORE) { return z; }
    let power = exp(z - largest);
    if (WEIGHTING == SOFTMAX_ALL) { return power / total; }
    if (WEIGHTING == SOFTMAX_TWICE) { return exp(power / total); }
    if (WEIGHTING == ABOVE_THRESHOLD) { return power / total - threshold; }
    return power;
}
