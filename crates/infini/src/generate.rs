//! Tokens out: greedy continuation, rows in lockstep.

use crate::model::{Model, Want};
use crate::state::State;

/// Continues each row greedily until `stop` says so of what the row has produced, or `max_tokens`.
///
/// Starts from the state's next-token logits; rows that have stopped are fed their last token again,
/// their output is cut. Afterwards the state has read what was produced but the last token.
///
/// # Panics
/// If the state holds no logits: read something with [`Want::Last`] first.
pub fn greedy(model: &Model, state: &mut State, max_tokens: usize, stop: &dyn Fn(&[u32]) -> bool) -> Vec<Vec<u32>> {
    let v = model.config().vocab_size;
    let mut out = vec![Vec::new(); state.batch()];
    let mut live = vec![true; state.batch()];
    for i in 0..max_tokens {
        let logits = state.logits().expect("a state with logits");
        let next: Vec<u32> = logits.chunks(v).map(argmax).collect();
        for ((row, live), token) in out.iter_mut().zip(&mut live).zip(&next) {
            if *live {
                row.push(*token);
                *live = !stop(row);
            }
        }
        if !live.contains(&true) || i + 1 == max_tokens {
            break;
        }
        model.forward(state, &next, Want::Last);
    }
    out
}

/// Index of the largest value, the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |b, (i, x)| if *x > b.1 { (i, *x) } else { b });
    best.0 as u32
}
