//! f32 kernels against the f64 reference over a table of sizes, and the reference's gradients against
//! central differences.

mod common;

use common::{Random, Recipe, settings};
use infini_kernels::conformance::{F32_BOUND, check_kernels, check_reference};
use infini_kernels::simd::{Level, force};
use infini_kernels::{Features, FinalState, Mix, Rope, Rule, Settings};

/// The case table: every size with every grouping of heads and every rule, the other settings taken in
/// turn so that each value meets each rule.
fn table() -> Vec<Recipe> {
    let mut table = Vec::new();
    for (i, t) in [0, 1, 3, 63, 64, 65, 100, 1000].into_iter().enumerate() {
        for (j, (h, hkv)) in [(1, 1), (2, 1), (9, 3)].into_iter().enumerate() {
            for (k, rule) in [Rule::Linear, Rule::Delta, Rule::SeqDelta].into_iter().enumerate() {
                for warm in [false, true] {
                    let turn = 7 * i + 3 * j + 5 * k + usize::from(warm);
                    let features = match rule {
                        Rule::SeqDelta => Features::L2,
                        _ => [Features::Elu1, Features::SoftmaxPair][turn % 2],
                    };
                    table.push(Recipe {
                        settings: Settings {
                            rule,
                            features,
                            mix: [Mix::Head, Mix::Token, Mix::Add, Mix::Memory][turn % 4],
                            rope: [Rope::Half, Rope::Interleaved, Rope::None][turn / 2 % 3],
                            segment_len: [64, 16, 100, 7][turn % 4],
                            span: 1 + turn / 3 % 2,
                            // the hole of span 1 with lag 1 is for configurations to refuse
                            lag: (turn / 3 % 2) * (turn / 5 % 2),
                            final_state: [FinalState::Closed, FinalState::Flush][turn / 4 % 2],
                            ..settings()
                        },
                        b: 1 + turn % 2,
                        t,
                        h,
                        hkv,
                        d: [32, 8, 24, 16][turn / 2 % 4],
                        dv: [32, 8, 20, 48][turn / 3 % 4],
                        fw: [16, 12][turn / 4 % 2],
                        warm,
                        resets: turn % 5 < 2,
                        null_slot: turn % 7 < 3,
                        seed: turn as u64,
                    });
                }
            }
        }
    }
    table
}

/// The one test of this file that forces a level.
#[test]
fn kernels_agree_with_the_reference() {
    let (mut worst, mut tensors) = (0.0f64, 0);
    for recipe in table() {
        let mut case = recipe.case();
        case.expect_reference().unwrap();
        for level in Level::available() {
            // the portable path calls libm for each multiply-add: small cases are enough there
            if level == Level::Portable && recipe.t > 100 && recipe.h > 1 {
                continue;
            }
            force(Some(level));
            for d in check_kernels(&case).unwrap() {
                assert!(d.rms <= F32_BOUND, "{} {}: rms {:.1e}: {recipe:?}", level.name(), d.tensor, d.rms);
                (worst, tensors) = (worst.max(d.rms), tensors + 1);
            }
        }
        force(None);
    }
    println!("{tensors} tensors, worst rms error {worst:.1e}");
    assert!(tensors > 4000);
}

/// Loss of math.md §11: the sum of the products of results and upstream gradients.
fn loss(case: &infini_kernels::conformance::Case) -> f64 {
    let mut case = case.clone();
    case.expect_reference().unwrap();
    let get = |n: &str| case.tensors.get(n).map_or(&[][..], |t| &t.data);
    [("up.y", "out.y"), ("up.M", "out.M"), ("up.z", "out.z")]
        .into_iter()
        .map(|(a, b)| get(a).iter().zip(get(b)).map(|(x, y)| x * y).sum::<f64>())
        .sum()
}

#[test]
fn reference_gradients_agree_with_central_differences() {
    let small = Recipe {
        settings: Settings { segment_len: 3, ..settings() },
        b: 2,
        t: 8,
        h: 2,
        hkv: 1,
        d: 4,
        dv: 3,
        fw: 3,
        warm: true,
        resets: false,
        null_slot: true,
        seed: 1,
    };
    let with = |rule, features, mix, span, lag, final_state, resets| Recipe {
        settings: Settings { rule, features, mix, span, lag, final_state, ..small.settings },
        resets,
        ..small
    };
    let recipes = [
        with(Rule::Linear, Features::Elu1, Mix::Head, 1, 0, FinalState::Closed, false),
        with(Rule::Linear, Features::SoftmaxPair, Mix::Token, 2, 1, FinalState::Flush, true),
        with(Rule::Delta, Features::Elu1, Mix::Add, 2, 1, FinalState::Closed, false),
        with(Rule::Delta, Features::SoftmaxPair, Mix::Head, 1, 0, FinalState::Flush, true),
        with(Rule::SeqDelta, Features::L2, Mix::Token, 2, 1, FinalState::Flush, false),
        with(Rule::SeqDelta, Features::L2, Mix::Head, 1, 0, FinalState::Closed, true),
        with(Rule::Linear, Features::Elu1, Mix::Memory, 2, 1, FinalState::Closed, true),
    ];
    let mut random = Random(5);
    for recipe in recipes {
        let case = recipe.case();
        let mut expected = case.clone();
        expected.expect_reference().unwrap();
        // it reproduces itself: names and shapes are complete
        assert!(check_reference(&expected).unwrap().iter().all(|d| d.error == 0.0));
        for name in case.tensors.keys().filter(|n| n.starts_with("in.") && *n != "in.reset") {
            let gradient = &expected.tensors[&name.replace("in.", "grad.")].data;
            let largest = gradient.iter().fold(1.0, |m: f64, g| m.max(g.abs()));
            for _ in 0..4 {
                let i = random.below(gradient.len());
                let h = 1e-3;
                // fourth order
                let slope: f64 = [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)]
                    .iter()
                    .map(|(step, weight)| {
                        let mut moved = case.clone();
                        moved.tensors.get_mut(name).unwrap().data[i] += step * h;
                        weight * loss(&moved) / (12.0 * h)
                    })
                    .sum();
                let error = (slope - gradient[i]).abs() / largest;
                assert!(error < 1e-7, "{name}[{i}]: {} but differences give {slope}: {recipe:?}", gradient[i]);
            }
        }
    }
}
